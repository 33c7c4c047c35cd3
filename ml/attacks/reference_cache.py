"""What a reference model says about a text, kept for ever by what the text is: it never changes (L7, section 15).

An entry is found by the digest of a text's token ids and by everything else that decides the number; another model,
kind of number or version of the code finds nothing and measures again. A model is known by its files, not by what was
done to it in memory. Only digests and losses are stored, but a digest of a text is still something about a person in
it: this serves texts that are nobody's, such as a benchmark's sets. What a verification measures of a subject lies in
its parts and goes with them (`ml.verification.parts`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import transformers
from torch import Tensor

from ml.checkpoints import Checkpoint, read_checkpoint, write_checkpoint
from ml.data.collate import EncodedText
from ml.digests import computing_code_sha256, document_sha256, sha256_hex
from ml.documents import Json
from ml.errors import CheckpointError
from ml.models.backbone import model_device
from ml.models.load import LoadedModel, tokenizer_sha256


class ReferenceCache:
    """Losses of one reference model below `directory`, for one process at a time.

    Args:
        mode: how the losses are measured (verification section 2.1); numbers of another mode are not these.
    """

    def __init__(self, directory: Path, reference: LoadedModel, *, mode: str) -> None:
        self._key = document_sha256(_identity(reference, mode))
        self._path = directory / f"reference-{self._key[:16]}.safetensors"

    def losses(self, texts: Sequence[EncodedText], measure: Callable[[list[EncodedText]], Tensor]) -> Tensor:
        """Loss of each text, (texts,): those on file are read, the others measured together and put on file."""
        known = self._read()
        digests = [_digest(text) for text in texts]
        missing = {d: text for d, text in zip(digests, texts, strict=True) if d not in known}
        if missing:
            measured = measure(list(missing.values()))
            known |= dict(zip(missing, measured.tolist(), strict=True))
            self._write(known)
        return torch.tensor([known[digest] for digest in digests])

    def _read(self) -> dict[str, float]:
        try:
            stored = read_checkpoint(self._path, config_sha256=self._key)
        except CheckpointError:
            # What cannot be read is measured again: nothing here is evidence by itself.
            self._path.unlink()
            return {}
        if stored is None:
            return {}
        if not {"digests", "losses"} <= stored.tensors.keys():
            return {}
        rows = stored.tensors["digests"].tolist()
        return {bytes(row).hex(): loss for row, loss in zip(rows, stored.tensors["losses"].tolist(), strict=True)}

    def _write(self, known: Mapping[str, float]) -> None:
        digests = torch.tensor([list(bytes.fromhex(d)) for d in known], dtype=torch.uint8).reshape(-1, 32)
        tensors = {"digests": digests, "losses": torch.tensor(list(known.values()), dtype=torch.float32)}
        write_checkpoint(self._path, Checkpoint(0, self._key, tensors, {}))


def _digest(text: EncodedText) -> str:
    return sha256_hex(" ".join(map(str, (text.first_label, *text.ids))).encode())


def _identity(reference: LoadedModel, mode: str) -> dict[str, Json]:
    device = model_device(reference.model)
    return {
        "model": reference.manifest_sha256,
        "tokenizer": tokenizer_sha256(reference),
        "dtype": str(reference.model.dtype),
        "device": device.type,
        "attention": str(reference.model.config._attn_implementation),
        "mode": mode,
        "code": computing_code_sha256(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
