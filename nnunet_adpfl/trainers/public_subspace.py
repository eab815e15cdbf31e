"""Trains in the span of gradients on generated images, where most of the signal is and little of the noise.

The noise of DP-SGD is spread evenly over all d coordinates, the gradients of patients are not: a few hundred directions hold
nearly all of their mean. Those directions can be found without any patient: by gradients of the same network, at the same
weights, on labelled images that a program draws (`procedural`). Each patient's gradient is described by its k coefficients
along them; these are clipped, summed and noised, so that k numbers get noise instead of d.

The directions depend on the weights, which are private outputs, and on the generator alone: for the mechanism they are
declared like a mask (design section 5, rule 4). After Zhou, Wu and Banerjee 2021 (who project after the noise) and Yu et al.
2021 (who clip and add noise in the subspace), with generated images in the place of public data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import psutil
import torch
from torch import nn

from nnunet_adpfl.errors import InputError
from nnunet_adpfl.nnunet_compat.training import Patches
from nnunet_adpfl.privacy.gradients.loop import Loss
from nnunet_adpfl.privacy.plan import Projection
from nnunet_adpfl.progress import note

PublicBatches = Callable[[int, int], Patches]  # (number, patches) -> a batch of generated patches, the same for equal numbers


class PublicSubspace:
    """Leading directions of the network's gradients on generated batches, found anew now and then.

    Args:
        settings: section of the privacy plan; ``dimensions`` is k.
        network, loss: as in training.
        trained: name -> parameter; the directions have their coordinates, in this order.
        draw: generated batches.
    """

    def __init__(
        self, settings: Projection, network: nn.Module, loss: Loss, trained: Mapping[str, nn.Parameter], draw: PublicBatches
    ) -> None:
        self._settings = settings
        self._network, self._loss = network, loss
        self._trained = dict(trained)
        self._draw = draw
        self._found: tuple[int, torch.Tensor] | None = None  # number of the refresh, directions (k, d)

    def prepare(self, first_step: int) -> None:
        """Find the directions at the network's weights, if a new stretch of the training begins with this step.

        To be called at the start of a block, when the network holds the weights that all sites begin with: they share the
        directions then. Raises InputError where generated images give no gradient.
        """
        number = first_step // self._settings.refresh_steps
        if self._found is None or self._found[0] != number:
            self._found = None  # its memory is needed
            directions = leading_directions(self._public_gradients(number), self._settings.dimensions)
            if not len(directions):
                raise InputError("privacy plan: projection: generated images give the network no gradient; set projection.dimensions to 0")
            if len(directions) < self._settings.dimensions:
                note(f"projection: generated images give {len(directions)} directions, the privacy plan has {self._settings.dimensions}")
            self._found = number, directions

    @property
    def count(self) -> int:
        return len(self._directions)

    def coefficients(self, gradients: Sequence[torch.Tensor]) -> torch.Tensor:
        """Coefficients (k) of a gradient, given as the tensors of all trained parameters in their order."""
        return self._directions @ torch.cat([gradient.flatten() for gradient in gradients])

    def spread(self, coefficients: torch.Tensor) -> dict[str, torch.Tensor]:
        """The update with these coefficients, in the shapes of the parameters."""
        flat, found, start = coefficients @ self._directions, {}, 0
        for name, parameter in self._trained.items():
            end = start + parameter.numel()
            found[name] = flat[start:end].view(parameter.shape)
            start = end
        return found

    @property
    def _directions(self) -> torch.Tensor:
        if self._found is None:
            raise RuntimeError("prepare the subspace before the first step")
        return self._found[1]

    def _public_gradients(self, number: int) -> torch.Tensor:
        """Gradients of generated batches, (batches, d), each of norm 1; those that vanish or are not finite are left out."""
        settings, like = self._settings, next(iter(self._trained.values()))
        width = sum(parameter.numel() for parameter in self._trained.values())
        rows, count = torch.empty((settings.public_gradients, width), device=like.device), 0
        self._network.train()
        for index in range(settings.public_gradients):
            data, target = self._draw(number * settings.public_gradients + index, settings.public_batch)
            self._clear()
            with torch.enable_grad():
                loss = self._loss(self._network(data), target)
            torch.autograd.backward(loss)
            torch.cat([_gradient(parameter).flatten() for parameter in self._trained.values()], out=rows[count])
            norm = torch.linalg.vector_norm(rows[count])
            if bool(torch.isfinite(norm)) and float(norm) > 0:
                rows[count] /= norm
                count += 1
        self._clear()
        return rows[:count]

    def _clear(self) -> None:
        for parameter in self._trained.values():
            parameter.grad = None


def check_memory(settings: Projection, trained: Mapping[str, nn.Parameter]) -> None:
    """InputError, before anything is paid for, where the directions do not fit into the memory that is free."""
    width = sum(parameter.numel() for parameter in trained.values())
    needed = 4 * width * (settings.public_gradients + 2 * settings.dimensions)
    device = next(iter(trained.values())).device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if needed > free:
        raise InputError(
            f"privacy plan: projection needs {needed / 2**30:.1f} GiB for {width:,} parameters, {free / 2**30:.1f} are free: take fewer "
            "projection.public_gradients and dimensions, or a narrower network (--base-features)"
        )


def leading_directions(rows: torch.Tensor, dimensions: int) -> torch.Tensor:
    """Orthonormal directions (at most ``dimensions``, d) that hold the most of the rows' squares; fewer where the rows span fewer.

    By way of the rows' inner products, which are a small matrix; then made orthonormal once more, because the condition of
    that matrix is the rows' squared.
    """
    values, vectors = torch.linalg.eigh((rows @ rows.T).double())
    kept = values.flip(0)[:dimensions] > 1e-6 * max(float(values.max()) if len(values) else 0.0, 1e-30)
    values, vectors = values.flip(0)[:dimensions][kept], vectors.flip(1)[:, :dimensions][:, kept]
    directions = (vectors / values.sqrt()).T.to(rows.dtype) @ rows
    return torch.linalg.qr(directions.T).Q.T.contiguous()


def _gradient(parameter: nn.Parameter) -> torch.Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
