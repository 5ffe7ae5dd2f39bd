"""What ``import minijaxnet`` gives."""

import importlib.metadata
import subprocess
import sys

import minijaxnet as mjn


def test_the_version_is_the_installed_one_and_asking_for_it_imports_no_jax():
    assert mjn.__version__ == importlib.metadata.version("minijaxnet")
    code = "import sys, minijaxnet; minijaxnet.__version__; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_public_name_is_there_and_listed():
    assert all(hasattr(mjn, name) for name in mjn.__all__)
    assert set(dir(mjn)) == set(mjn.__all__)
