"""A root file system that has the C and C++ runtime, LibTorch and the install tree, and nothing else at all: what a
container or another host gives our programs. With a network of its own (loopback only), so that fixed ports are free.
Needs the rights to make namespaces; gone, with all that runs in it, when closed."""

import os
import re
import shutil
import subprocess

RUNTIME = ['libc.so.6', 'libm.so.6', 'libdl.so.2', 'librt.so.1', 'libpthread.so.0', 'libresolv.so.2', 'libutil.so.1',
           'libgcc_s.so.1', 'libstdc++.so.6', 'libnss_files.so.2', 'libnss_dns.so.2']
LOADER = '/lib64/ld-linux-x86-64.so.2'
LOOPBACK_UP = ('import fcntl, socket, struct; fcntl.ioctl(socket.socket(), 0x8914, '  # SIOCSIFFLAGS: up, running
               'struct.pack("16sh14x", b"lo", 0x41))')


def install(build, prefix):
    subprocess.run(['cmake', '--install', build, '--prefix', prefix], check=True, stdout=subprocess.DEVNULL)


class BareRoot:
    """`folder` is empty; `tree` becomes /opt/ringmaster, and its lib/torch refers to `torch`, a folder of the host."""

    def __init__(self, folder, tree, torch, hosts=''):
        self.path = os.path.join(folder, 'root')
        for place in ('lib64', 'lib', 'proc', 'dev', 'sys', 'tmp', 'etc', 'opt/ringmaster', 'opt/site'):
            os.makedirs(os.path.join(self.path, place))
        shutil.copy(LOADER, self.path + LOADER)
        listing = subprocess.run(['/sbin/ldconfig', '-p'], check=True, capture_output=True, text=True).stdout
        cache = dict(re.findall(r'^\s*(\S+) \(.*x86-64.*\) => (\S+)$', listing, re.M))
        for name in RUNTIME:
            if name in cache:
                shutil.copy(cache[name], os.path.join(self.path, 'lib'))
        self.write('etc/hosts', '127.0.0.1 localhost\n' + hosts)
        self.write('etc/nsswitch.conf', 'hosts: files\n')
        link = os.path.join(tree, 'lib', 'torch')
        if not os.path.lexists(link):
            os.symlink('../../site/torch/lib', link)
        # The nvidia wheels that libtorch refers to lie beside it.
        self._mounts = [('--rbind', '/proc', 'proc'), ('--rbind', '/dev', 'dev'), ('--bind', tree, 'opt/ringmaster'),
                        ('--bind', os.path.realpath(os.path.join(torch, '..', '..')), 'opt/site')]
        self._holder = None

    def write(self, path, text, mode=0o644):
        path = os.path.join(self.path, path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, 'w', encoding='utf-8') as file:
            file.write(text)
        os.chmod(path, mode)

    def share(self, source, place):
        """`source`, a folder of the host, appears at `place`. REQUIRES: not open yet."""
        os.makedirs(os.path.join(self.path, place.strip('/')), exist_ok=True)
        self._mounts.append(('--bind', source, place.strip('/')))

    def open(self, read_only=False):
        """Returns None, or why this user may not make such a root."""
        namespaces = ['unshare', '--mount', '--net'] + ([] if os.geteuid() == 0 else ['--map-root-user'])
        probe = subprocess.run([*namespaces, 'true'], capture_output=True, text=True)
        if probe.returncode:
            return f'namespaces cannot be made: {probe.stderr.strip()}'
        script = f'set -e; mount --bind {self.path} {self.path}; '
        if read_only:
            script += f'mount -o remount,ro,bind {self.path}; '
        script += ''.join(f'mount {how} {source} {self.path}/{place}; ' for how, source, place in self._mounts)
        # That of the new network: UCX looks for its devices there.
        script += f'mount -t sysfs none {self.path}/sys; echo ready; exec cat'
        self._holder = subprocess.Popen([*namespaces, 'sh', '-c', script], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)
        if self._holder.stdout.readline() != 'ready\n':
            return 'mounts are refused'
        subprocess.run([*self.network_command(), 'python3', '-c', LOOPBACK_UP], check=True)
        return None

    def network_command(self):
        """What to put before a command of the host to run it in the root's network."""
        user = [] if os.geteuid() == 0 else ['--user']
        return [shutil.which('nsenter'), '--target', str(self._holder.pid), *user, '--net']

    def command(self, *words, user=None, env=None):
        """A command line that replaces itself by `words`, run in the root with exactly the environment `env`."""
        settings = [f'{key}={value}' for key, value in (env or {}).items()]
        chroot = [shutil.which('chroot')] + ([f'--userspec={user}'] if user else [])
        return [shutil.which('env'), '-i', *settings, *self.network_command(), '--mount', *chroot, self.path, *words]

    def close(self):
        if self._holder:
            self._holder.stdin.close()
            self._holder.stdout.close()
            self._holder.wait()
