"""clip-retrieval 2.45.0's ``inference`` on a folder of pictures, as its command line starts it.

`embed.py` runs this file in an environment of its own: it needs numpy < 2 and setuptools < 81. The
one argument is a JSON object.
"""

import importlib.util
import json
import sys
import types
from pathlib import Path

PACKAGES = (
    *("clip-retrieval==2.45.0", "all-clip==1.3.0", "clip-anytorch==2.6.0", "setuptools<81"),
    *("numpy==1.26.4", "pandas==2.3.3", "pyarrow==15.0.2", "open-clip-torch==2.32.0"),
    *("fire<0.6", "termcolor", "six", "ftfy", "wcwidth", "python-dateutil", "tzdata", "pytz"),
)


def main() -> None:
    options = json.loads(sys.argv[1])
    # The package's own __init__ imports all its commands, with what they need.
    spec = importlib.util.find_spec("clip_retrieval")
    assert spec
    assert spec.submodule_search_locations
    package = types.ModuleType("clip_retrieval")
    package.__path__ = [str(Path(spec.submodule_search_locations[0]))]
    sys.modules["clip_retrieval"] = package
    # Imported always, used for its multilingual model and with enable_wandb only.
    for name, part in (("sentence_transformers", "SentenceTransformer"), ("wandb", "init")):
        sys.modules[name] = types.ModuleType(name)
        setattr(sys.modules[name], part, None)

    from clip_retrieval.clip_inference.main import main as inference

    inference(
        input_dataset=options["pictures"],
        output_folder=options["out"],
        enable_text=False,
        batch_size=options["batch_size"],
        clip_model=f"open_clip:{options['architecture']}/{options['weights']}",
    )


if __name__ == "__main__":
    main()
