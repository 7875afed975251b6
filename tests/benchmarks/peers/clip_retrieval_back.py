"""clip-retrieval 2.45.0's service as its command line starts it, but on the loopback address.

`service.py` runs this file in an environment of its own: it needs numpy < 2 and setuptools < 81.
The one argument is a JSON object of ``clip_back``'s options.
"""

import importlib.util
import json
import sys
import types
from pathlib import Path

PACKAGES = (
    *("clip-retrieval==2.45.0", "all-clip==1.3.0", "clip-anytorch==2.6.0", "setuptools<81"),
    *("numpy==1.26.4", "pandas==2.3.3", "pyarrow==15.0.2", "faiss-cpu==1.13.2", "h5py<4"),
    *("open-clip-torch==2.32.0", "flask==3.1.3", "flask-restful<1", "flask-cors<5"),
    *("werkzeug>=3.1", "itsdangerous>=2.2", "blinker>=1.9", "click>=8.1", "aniso8601", "pytz"),
    *("fire<0.6", "termcolor", "six", "ftfy", "wcwidth", "python-dateutil", "tzdata"),
)


def main() -> None:
    # The package's own __init__ imports all its commands, with what they need.
    spec = importlib.util.find_spec("clip_retrieval")
    assert spec
    assert spec.submodule_search_locations
    package = types.ModuleType("clip_retrieval")
    package.__path__ = [str(Path(spec.submodule_search_locations[0]))]
    sys.modules["clip_retrieval"] = package

    from clip_retrieval.clip_back import clip_back
    from flask import Flask

    run = Flask.run
    # It would listen on every address.
    Flask.run = lambda app, host, **options: run(app, host="127.0.0.1", **options)
    clip_back(**json.loads(sys.argv[1]))


if __name__ == "__main__":
    main()
