"""The rule by which `--device` becomes a device, the same for everything that computes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cytofm_cli.errors import UsageError
from cytofm_cli.work.children import slot

if TYPE_CHECKING:
    import torch

_NAMES = "auto, cpu, cuda or cuda:N"
_shared_gpus: int | None = None


def find_device(name: str, *, rank: int | None = None) -> torch.device:
    """Turn a name into a device that is there.

    Args:
        name: `auto` (the GPU if there is one, else the CPU), `cpu`, `cuda`, `cuda:1`, or another
            that this PyTorch can compute on.
        rank: which GPU `auto` and `cuda` mean, where several processes share a machine; None:
            that of this worker under `OnGpus`, else PyTorch's first.

    Raises:
        UsageError: it is unknown, or not there.
    """
    import torch

    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        device = torch.device(("cuda" if n_gpus else "cpu") if name == "auto" else name)
    except RuntimeError as error:
        raise UsageError(f"no device is called {name!r}.", hint=_NAMES) from error
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        return _usable(device)
    if n_gpus == 0:
        raise UsageError(f"--device {name}: there is no GPU here.", hint="--device cpu")
    rank = own_gpu() if rank is None else rank
    number = rank if device.index is None else device.index
    if number is not None and number >= n_gpus:
        several = f"are {n_gpus} GPUs here, cuda:0 to cuda:{n_gpus - 1}"
        raise UsageError(
            f"--device cuda:{number}: there {several if n_gpus > 1 else 'is one GPU here'}.",
            hint="--device cuda:0",
        )
    return torch.device("cuda") if number is None else torch.device("cuda", number)


class OnGpus:
    """Does a work with each worker on a GPU of its own, in turns if there are more workers.

    Args:
        work: called with what this is called with; what it computes on is `auto` or `cuda`.
        n_gpus: so many are there. Which ones the scheduler says (CUDA_VISIBLE_DEVICES, which may
            hold names of parts of a GPU) and is never changed here: they are counted from 0.
    """

    def __init__(self, work: Any, n_gpus: int) -> None:
        self._work, self._n_gpus = work, n_gpus

    def __call__(self, *arguments: Any) -> Any:
        """Do the work.

        Raises:
            UsageError: of all slides: there are fewer GPUs.
        """
        global _shared_gpus  # noqa: PLW0603 - a worker has one GPU for its whole life
        if _shared_gpus is None:
            _refuse_fewer(self._n_gpus)
            _shared_gpus = self._n_gpus
        return self._work(*arguments)


def own_gpu() -> int | None:
    """Return the number of this worker's GPU; None: it has none of its own."""
    return None if _shared_gpus is None else (slot() or 0) % _shared_gpus


def _refuse_fewer(n_gpus: int) -> None:
    import torch

    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if there < n_gpus:
        error = UsageError(
            f"--gpus {n_gpus}: there {f'are {there} GPUs' if there != 1 else 'is one GPU'} here.",
            hint="ask the scheduler for as many (sbatch --gres=gpu:N), or leave --gpus out",
        )
        error.of_all_slides = True
        raise error


def check_device(name: str) -> None:
    """Refuse a device that is not there, before anything is read; loads torch only to look.

    Raises:
        UsageError: see `find_device`.
    """
    if name not in ("auto", "cpu"):
        find_device(name)


def _usable(device: torch.device) -> torch.device:
    """Try a device of another kind, such as Apple's `mps`."""
    import torch

    try:
        if device.type == "meta":  # takes everything and computes nothing
            raise RuntimeError("it has no memory")
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"device {str(device)!r} cannot be used here.", hint=_NAMES) from error
    return device
