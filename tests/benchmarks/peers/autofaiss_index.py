"""autofaiss in an environment of its own: builds an index as clip-retrieval does, or asks one.

python autofaiss_index.py build EMBEDDINGS INDEX MEMORY      prints seconds and what was built
python autofaiss_index.py ask INDEX QUERIES.npy FOUND.npy    prints queries a second, one by one
"""

import json
import sys
import time
from pathlib import Path

import faiss
import numpy as np

K = 10
QUERY_MILLISECONDS = 10.0
"""autofaiss's default, which it tunes to."""


def build(embeddings: str, path: str, memory: str) -> dict:
    """Build with autofaiss's defaults, which are clip-retrieval's, but for memory.

    All cores build. It is tuned again on one thread, as it is asked on one: a setting that two
    threads finish in its 10 ms would be too slow.
    """
    from autofaiss import build_index
    from autofaiss.external.optimize import get_optimal_hyperparameters

    began = time.perf_counter()
    index, infos = build_index(
        embeddings,
        index_path=path,
        index_infos_path=f"{path}.json",
        metric_type="ip",
        max_index_memory_usage=memory,
        current_memory_available="16G",
    )
    assert index is not None, "autofaiss built nothing"
    faiss.omp_set_num_threads(1)
    kind = infos["index_key"]
    setting = get_optimal_hyperparameters(index, kind, max_speed_ms=QUERY_MILLISECONDS)
    Path(f"{path}.json").write_text(json.dumps({**infos, "index_param": setting}))
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "bytes": Path(path).stat().st_size, **told(path)}


def told(path: str) -> dict:
    """Return what autofaiss wrote about its index."""
    infos = json.loads(Path(f"{path}.json").read_text())
    return {"kind": infos["index_key"], "setting": infos["index_param"]}


def ask(path: str, queries: str, found: str) -> dict:
    """Search with autofaiss's setting, each query alone, on one thread."""
    faiss.omp_set_num_threads(1)
    index = faiss.read_index(path)
    faiss.ParameterSpace().set_index_parameters(index, told(path)["setting"])
    asked = np.load(queries)
    index.search(asked[:20], K)
    began = time.perf_counter()
    rows = np.concatenate([index.search(query[None], K)[1] for query in asked])
    seconds = time.perf_counter() - began
    np.save(found, rows)
    return {"queries_per_second": len(asked) / seconds}


if __name__ == "__main__":
    print(json.dumps({"build": build, "ask": ask}[sys.argv[1]](*sys.argv[2:])))
