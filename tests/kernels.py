"""Kernels that start as copies of a process with the large libraries loaded, for tests that run many jobs."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkServerContext
from unittest.mock import patch

from ipykernel.kernelapp import launch_new_instance


def serve(arguments: list[str], environment: dict[str, str], folder: str) -> None:
    """Be a kernel, as `python -m ipykernel_launcher` is one."""
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    parent = f"--IPKernelApp.parent_handle={os.getppid()}"  # it ends with it
    launch_new_instance(argv=[*arguments, parent, "--matplotlib=inline"])  # else what is loaded asks for no kernel's


class Copy:
    """What Jupyter's client asks of a kernel's process."""

    stdin = stdout = stderr = None

    def __init__(self, process) -> None:
        process.start()
        self.process, self.pid = process, process.pid
        while self.poll() is None and os.getpgid(self.pid) != self.pid:  # else signals for its group came to ours
            time.sleep(0.01)

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self) -> int:
        self.process.join()
        return self.process.exitcode


@contextmanager
def copied_kernels(processes: ForkServerContext) -> Iterator[None]:
    """Let the kernels that this process starts inside the block be copies."""

    def launch(command: list[str], env: dict[str, str], cwd: str | None = None, **_) -> Copy:
        assert command[1:3] == ["-m", "ipykernel_launcher"], command
        return Copy(processes.Process(target=serve, args=(command[3:], env, cwd or os.getcwd())))

    with patch("jupyter_client.provisioning.local_provisioner.launch_kernel", launch):
        yield
