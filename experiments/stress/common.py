"""What the scripts in this folder share."""

import contextlib
import pathlib
import shutil
import subprocess


@contextlib.contextmanager
def disk(path: pathlib.Path, size: str):
    """A disk of so many bytes at a path, for as long as the context lasts; needs the right to mount."""
    shutil.rmtree(path, ignore_errors=True)  # of an earlier command
    path.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=False)


def tell(case: str, right: bool, text: str) -> bool:
    print(f"{'right' if right else 'WRONG'}  {case}: {text}", flush=True)
    return right
