"""No kernel's products are serialised: ptxas says so in a note, not in a warning, where control flow between asynchronous
products keeps it from leaving them in flight, and the kernel loses a quarter of its speed."""

import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[3]


@unittest.skipUnless(shutil.which('nvcc'), 'nvcc is not installed')
class SerializedTest(unittest.TestCase):
    def notes(self, source):
        with tempfile.TemporaryDirectory() as out:
            done = subprocess.run(
                ['nvcc', '-std=c++17', '-O3', '-gencode', 'arch=compute_90a,code=sm_90a', f'-I{ROOT}', '-Xptxas', '-v',
                 '-cubin', '-o', f'{out}/kernel.cubin', str(source)], capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        return re.findall(r'\(C\d+\) Potential Performance Loss: (.*)', done.stderr + done.stdout)

    def test_no_kernel_is(self):
        sources = sorted((ROOT / 'attention/kernels').glob('*.cu'))
        self.assertTrue(sources)
        for source in sources:
            self.assertEqual(self.notes(source), [], source.name)


if __name__ == '__main__':
    unittest.main()
