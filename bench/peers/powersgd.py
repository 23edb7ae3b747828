"""PyTorch's PowerSGD hook, also where there is no numpy (LibTorch alone was installed): all it draws by it is the seed
of a bucket's first Q, the same on all ranks."""
import random
import sys
import types

import torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook as hook


class RandomState(random.Random):
    def randint(self, end):
        return self.randrange(end)


def state(**options):
    try:
        import numpy  # noqa: F401
    except ImportError:
        stub = types.ModuleType("numpy")
        stub.random = types.SimpleNamespace(RandomState=RandomState)
        sys.modules["numpy"] = stub
        try:
            return hook.PowerSGDState(None, **options)
        finally:
            del sys.modules["numpy"]
    return hook.PowerSGDState(None, **options)
