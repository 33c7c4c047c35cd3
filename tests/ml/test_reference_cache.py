"""What a reference model says is asked once and found by content."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ml.attacks.reference_cache import ReferenceCache
from ml.data.collate import EncodedText
from ml.field_suite import reference_losses
from ml.models.load import LoadedModel, load_model
from tests.tiny import tiny_model


@pytest.fixture(name="model", scope="module")
def _model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(tiny_model(Path(tmp_path_factory.mktemp("tiny")) / "model", seed=6))


def _texts(*first: int) -> list[EncodedText]:
    return [EncodedText((token, 9, 10, 11, 0), 2, ()) for token in first]


class Measured:
    """The real measurement, and how many texts it was asked for each time."""

    def __init__(self, model: LoadedModel) -> None:
        self.model, self.asked = model, list[int]()

    def __call__(self, texts: list[EncodedText]) -> torch.Tensor:
        self.asked.append(len(texts))
        return reference_losses(self.model, texts)


def test_only_texts_that_are_not_on_file_are_measured(model: LoadedModel, tmp_path: Path) -> None:
    measure = Measured(model)
    first = ReferenceCache(tmp_path, model, mode="native").losses(_texts(5, 6, 5), measure)
    again = ReferenceCache(tmp_path, model, mode="native").losses(_texts(7, 6, 5), measure)
    assert measure.asked == [2, 1]
    assert first.tolist() == pytest.approx(reference_losses(model, _texts(5, 6, 5)).tolist(), abs=1e-6)
    assert again.tolist() == pytest.approx(reference_losses(model, _texts(7, 6, 5)).tolist(), abs=1e-6)
    assert ReferenceCache(tmp_path, model, mode="native").losses([], measure).tolist() == []


def test_the_same_tokens_with_other_labels_are_another_text(model: LoadedModel, tmp_path: Path) -> None:
    cache, measure = ReferenceCache(tmp_path, model, mode="native"), Measured(model)
    text = _texts(5)[0]
    cache.losses([text, EncodedText(text.ids, 3, ())], measure)
    assert measure.asked == [2]


def test_another_model_or_mode_finds_nothing(
    model: LoadedModel, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = load_model(tiny_model(Path(tmp_path_factory.mktemp("other")) / "model", seed=7))
    measure = Measured(model)
    for reference, mode in ((model, "native"), (model, "parity"), (other, "native")):
        ReferenceCache(tmp_path, reference, mode=mode).losses(_texts(5), measure)
    assert measure.asked == [1, 1, 1]


def test_a_file_that_cannot_be_read_is_measured_again(model: LoadedModel, tmp_path: Path) -> None:
    measure = Measured(model)
    ReferenceCache(tmp_path, model, mode="native").losses(_texts(5), measure)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-3])
    ReferenceCache(tmp_path, model, mode="native").losses(_texts(5), measure)
    assert measure.asked == [1, 1]
