"""Environments of the benchmarks' own, for what does not run beside our packages."""

import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path


def environment(folder: Path, packages: Sequence[str]) -> Path:
    """Return the Python of an environment with these packages, made once.

    Torch and the rest are lent to it by a path, from the environment that this runs in.
    """
    python, made_of = folder / "bin" / "python", folder / "made_of.txt"
    lent = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    wanted = "\n".join((*packages, *lent))
    if made_of.is_file() and made_of.read_text() == wanted:
        return python
    print(f"Making the environment {folder}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", *packages]
    subprocess.run(install, check=True)
    # A path named in a .pth file is searched after the environment's own packages.
    own = next(folder.glob("lib/python*/site-packages"))
    (own / "lent.pth").write_text("\n".join(lent) + "\n")
    made_of.write_text(wanted)
    return python
