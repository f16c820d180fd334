"""The environments of rlroute, imported as `rlroute.envs`.

Importing this package enters them into Gymnasium's registry, where Gymnasium is installed; an
exported router works without it.
"""

import importlib.util

if __name__ != "rlroute.envs":
    raise ImportError("import rlroute.envs, not envs: two copies of its classes would exist")

if importlib.util.find_spec("gymnasium") is not None:
    from rlroute.envs.registration import register_environments

    register_environments()
