"""No kernel's products are serialised: ptxas says so in a note, not in a warning, where control flow between asynchronous
products keeps it from leaving them in flight, and the kernel loses a quarter of its speed."""

import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[3]

# Waits for its products in only some of its threads.
CONTROL = """
#include "attention/kernels/sm90_products.cuh"
namespace sm = ringmaster::attention::sm90;
__global__ void Divergent(float* out, uint64_t a, uint64_t b, int steps) {
  float d[32] = {};
  for (int i = 0; i < steps; ++i) {
    sm::PinRegisters(d);
    sm::FenceProducts();
    sm::MultiplyRows<ringmaster::attention::kernels::Bf16>(d, a, b, true);
    sm::CommitProducts();
  }
  if (threadIdx.x < steps) {
    sm::AwaitProducts<0>();
    sm::PinRegisters(d);
    for (int i = 0; i < 32; ++i) out[threadIdx.x * 32 + i] = d[i];
  }
}
"""


@unittest.skipUnless(shutil.which('nvcc'), 'nvcc is not installed')
class SerializedTest(unittest.TestCase):
    def notes(self, source):
        with tempfile.TemporaryDirectory() as out:
            done = subprocess.run(
                ['nvcc', '-std=c++17', '-O3', '-gencode', 'arch=compute_90a,code=sm_90a', f'-I{ROOT}', '-Xptxas', '-v',
                 '-cubin', '-o', f'{out}/kernel.cubin', str(source)], capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)
        return re.findall(r'\(C\d+\) Potential Performance Loss: (.*)', done.stderr + done.stdout)

    def test_the_note_is_found(self):
        with tempfile.TemporaryDirectory() as folder:
            source = pathlib.Path(folder, 'control.cu')
            source.write_text(CONTROL, encoding='utf-8')
            self.assertNotEqual(self.notes(source), [])

    def test_no_kernel_is(self):
        sources = sorted((ROOT / 'attention/kernels').glob('*.cu'))
        self.assertTrue(sources)
        for source in sources:
            self.assertEqual(self.notes(source), [], source.name)


if __name__ == '__main__':
    unittest.main()
