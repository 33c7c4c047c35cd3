"""GradNorm: how strongly one text would still move the weights (verification section 3, oracle O-12). White box.

The score is the unweighted mean, over parameter tensors, of the norm of each tensor's gradient of the text's mean
loss; a text known by heart hardly moves anything. No gradient of a weight is formed: for a linear layer with inputs A
and output gradients B of one text, ||grad||^2 = sum(A A' * B B'), so one backward pass serves a whole batch.

Source: arXiv:2402.17012; the norms without gradients are those of arXiv:1510.01799. The last label is left out. The
model is read in evaluation mode: the reference code trains through dropout, which makes the score random.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from ml.attacks.fused import DEFAULT_BUDGET
from ml.data.collate import EncodedText, collate, label_log_probs, mean_per_sequence, token_budget_batches
from ml.errors import EmptySequenceError, NonFiniteError, SpecError
from ml.models.backbone import model_device
from ml.models.load import LoadedModel


def ghost_square(inputs: Tensor, gradients: Tensor) -> Tensor:
    """Squared gradient norm of a weight per text: (texts, tokens, in) and (texts, tokens, out) to (texts,). O-12."""
    tokens, size = inputs.shape[1], inputs.shape[2] * gradients.shape[2]
    if tokens * tokens > size:
        return torch.einsum("bti,bto->bio", inputs, gradients).square().sum(dim=(1, 2))
    return (inputs @ inputs.mT * (gradients @ gradients.mT)).sum(dim=(1, 2))


def gradient_norms(
    loaded: LoadedModel,
    texts: Sequence[EncodedText],
    *,
    budget: int = DEFAULT_BUDGET,
    after_batch: Callable[[int], None] | None = None,
) -> Tensor:
    """Mean gradient norm of each text: (texts,) float32; larger is less familiar.

    Only parameters that can be trained count where there are such (an adapter's); otherwise all of them.

    Raises:
        EmptySequenceError: a text has no label besides its end.
        NonFiniteError: a norm is NaN or infinite.
        SpecError: a parameter is used in a way whose norm is not known.
    """
    if any(len(text.ids) - text.first_label < 2 for text in texts):
        raise EmptySequenceError("a text has no label besides its end; it has no gradient")
    cut = [EncodedText(text.ids[:-1], text.first_label, ()) for text in texts]
    out, done = torch.zeros(len(texts)), 0
    with _watched(loaded.model) as watch:
        for rows in token_budget_batches([len(text.ids) for text in cut], budget=budget):
            _backward(loaded, [cut[i] for i in rows])
            out[rows] = torch.stack([norm.cpu() for norm in watch.norms()]).mean(dim=0)
            done += len(rows)
            if after_batch is not None:
                after_batch(done)
    if not bool(torch.isfinite(out).all()):
        raise NonFiniteError("a gradient norm is NaN or infinite; the model is broken and has no score")
    return out


def _backward(loaded: LoadedModel, texts: Sequence[EncodedText]) -> None:
    batch = collate(texts, pad_id=loaded.pad_id).to(model_device(loaded.model))
    kept = batch.labels.shape[1] - min(text.first_label for text in texts) + 1
    positions = torch.arange(batch.input_ids.shape[1], device=batch.input_ids.device).expand_as(batch.input_ids)
    with torch.enable_grad():
        output = loaded.model(input_ids=batch.input_ids, position_ids=positions, use_cache=False, logits_to_keep=kept)
        log_probs, mask = label_log_probs(output.logits, batch.labels[:, -kept:])
        (-mean_per_sequence(log_probs, mask)).sum().backward()


@dataclass(frozen=True, slots=True)
class _Use:
    """One place in a model that uses a parameter."""

    module: nn.Module
    name: str


class _Watch:
    """Inputs of the layers that hold parameters, and the gradients of their outputs, of the last backward pass."""

    def __init__(self, uses: Sequence[Sequence[_Use]]) -> None:
        self._uses = uses
        self.listening = True
        self.inputs: dict[nn.Module, Tensor] = {}
        self.gradients: dict[nn.Module, Tensor] = {}

    def norms(self) -> list[Tensor]:
        """Gradient norm of every parameter, each (texts,), of those that the pass used."""
        self.listening = False
        norms = [self._square(uses) for uses in self._uses if all(use.module in self.gradients for use in uses)]
        self.listening = True
        self.inputs.clear()
        self.gradients.clear()
        return [square.clamp_min(0).sqrt() for square in norms]

    def _square(self, uses: Sequence[_Use]) -> Tensor:
        if len(uses) == 1:
            return self._of_one(uses[0])
        embedding = next((use.module for use in uses if isinstance(use.module, nn.Embedding)), None)
        head = next((use.module for use in uses if isinstance(use.module, nn.Linear)), None)
        if len(uses) != 2 or embedding is None or head is None:
            raise SpecError("a parameter is shared by layers other than the embedding and the output layer")
        ids, moved = self.inputs[embedding], self.gradients[embedding]
        states, logits = self.inputs[head], self.gradients[head]
        asked = logits.gather(2, ids.unsqueeze(1).expand(-1, logits.shape[1], -1))
        crossed = (asked * (states @ moved.mT)).sum(dim=(1, 2))
        return self._of_one(_Use(embedding, "weight")) + self._of_one(_Use(head, "weight")) + 2 * crossed

    def _of_one(self, use: _Use) -> Tensor:
        inputs, gradients = self.inputs[use.module], self.gradients[use.module]
        if isinstance(use.module, nn.Embedding):
            same = inputs.unsqueeze(1) == inputs.unsqueeze(2)
            return (same * (gradients @ gradients.mT)).sum(dim=(1, 2))
        if isinstance(use.module, nn.Linear):
            inputs = inputs.to(gradients.dtype)
            return ghost_square(inputs, gradients) if use.name == "weight" else gradients.sum(dim=1).square().sum(dim=1)
        return _each_text(use, inputs, gradients)


def _each_text(use: _Use, inputs: Tensor, gradients: Tensor) -> Tensor:
    """Any other layer: the gradient of its parameter for each text alone; small for the norms between layers."""

    def pull(parameter: Tensor, given: Tensor, pulled: Tensor) -> Tensor:
        return (functional_call(use.module, {use.name: parameter}, (given,)) * pulled).sum()

    with torch.enable_grad():
        formed = vmap(grad(pull), in_dims=(None, 0, 0))(getattr(use.module, use.name).detach(), inputs, gradients)
    return formed.flatten(1).square().sum(dim=1)


@contextmanager
def _watched(model: Any) -> Iterator[_Watch]:
    """Watch the layers that hold parameters; no parameter gets a gradient of its own meanwhile."""
    parameters = list(model.parameters())
    wanted = [p.requires_grad for p in parameters]
    counted = {id(p) for p in parameters if p.requires_grad} or {id(p) for p in parameters}
    by_parameter: defaultdict[int, list[_Use]] = defaultdict(list)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in counted:
                by_parameter[id(parameter)].append(_Use(module, name))
    watch = _Watch(list(by_parameter.values()))
    holders = {use.module for uses in by_parameter.values() for use in uses}
    source = model.get_input_embeddings()
    hooks = [source.register_forward_hook(_start_here)]
    hooks += [module.register_forward_hook(partial(_remember, watch)) for module in holders]
    try:
        model.requires_grad_(False)
        yield watch
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, flag in zip(parameters, wanted, strict=True):
            parameter.requires_grad_(flag)


def _start_here(_module: nn.Module, _given: Any, output: Tensor) -> None:
    # Nothing below has to be differentiated; everything above then passes gradients without a trainable parameter.
    output.requires_grad_(True)


def _remember(watch: _Watch, module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
    if not watch.listening:
        return
    watch.inputs[module] = given[0].detach()
    if not output.requires_grad:
        output.requires_grad_(True)

    def keep(gradient: Tensor) -> None:
        watch.gradients[module] = gradient.detach()

    output.register_hook(keep)
