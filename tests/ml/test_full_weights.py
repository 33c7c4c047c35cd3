"""Knowledge that lies in an adapter, or in weights stored rounded, becomes full weights that a deletion can edit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from ml import full_weights
from ml.digests import model_manifest
from ml.errors import ModelDirectoryError
from ml.models.load import load_model, model_ref
from ml.specs import ModelRef
from tests.flow.stand import missing
from tests.ml.adapters import QUANTISED, logits, made_adapter
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    return tiny_model(Path(tmp_path_factory.mktemp("parts")) / "model", seed=6)


def _make(out: Path, model: ModelRef, *adapters: ModelRef) -> int:
    words = [word for adapter in adapters for word in ("--adapter", adapter.path)]
    return full_weights.main(["--model", model.path, *words, "--out", str(out)])


def test_adapters_become_part_of_the_weights(
    start: ModelRef, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = [made_adapter(start, tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 2))]
    assert _make(tmp_path / "full", start, *both) == 0
    made = load_model(model_ref(tmp_path / "full"))
    assert made.manifest_sha256 in capsys.readouterr().out
    live = PeftModel.from_pretrained(load_model(start).model, both[0].path, adapter_name="a")
    live.load_adapter(both[1].path, adapter_name="b")
    live.base_model.set_adapter(["a", "b"])
    assert torch.allclose(logits(made.model), logits(live), atol=1e-4)
    assert not torch.allclose(logits(made.model), logits(load_model(start).model), atol=1e-2)
    assert not list((tmp_path / "full").glob("adapter*"))
    # What shared its weights before goes on sharing them, unless an adapter changes one of the two.
    assert made.model.get_output_embeddings().weight is made.model.get_input_embeddings().weight


def test_an_adapter_of_the_output_layer_survives_saving(start: ModelRef, tmp_path: Path) -> None:
    head = made_adapter(start, tmp_path / "head", seed=3, layers=["lm_head"])
    assert _make(tmp_path / "full", start, head) == 0
    live = PeftModel.from_pretrained(load_model(start).model, head.path)
    assert torch.allclose(logits(load_model(model_ref(tmp_path / "full")).model), logits(live), atol=1e-4)


def test_what_cannot_be_made_is_refused_and_leaves_nothing(
    start: ModelRef, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(model: ModelRef, *adapters: ModelRef, match: str, out: str = "full") -> None:
        assert _make(tmp_path / out, model, *adapters) == 2
        told = capsys.readouterr()
        assert match in told.err
        assert "manifest" not in told.out
        assert not (tmp_path / "full").exists()

    sound = made_adapter(start, tmp_path / "sound", seed=1)
    refused(start, match="holds full weights already")
    refused(start, sound, match="sound exists already", out="sound")
    torn = tmp_path / "torn"
    shutil.copytree(sound.path, torn)
    (torn / "adapter_config.json").write_text("{")
    refused(start, ModelRef(str(torn), model_manifest(torn).manifest_sha256), match="not JSON")
    odd = tmp_path / "odd"
    shutil.copytree(start.path, odd)
    config = json.loads((odd / "config.json").read_text())
    (odd / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    refused(model_ref(odd), match="not stored by bitsandbytes")
    with pytest.raises(ModelDirectoryError, match="python -m ml.full_weights"):
        load_model(model_ref(odd))


_STORE = """
import sys
from pathlib import Path
import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from ml.models.load import load_model
from ml.models.served import compute_alike
from ml.specs import ModelRef
from tests.ml.adapters import logits
path, digest, adapter, out, bits = sys.argv[1:]
how = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}
how = BitsAndBytesConfig(**(how if bits == "4" else {"load_in_8bit": True}))
loaded = load_model(ModelRef(path, digest), quantisation=how)
loaded.model.generation_config.update(do_sample=True, temperature=0.7, top_p=0.9)
loaded.model.save_pretrained(out)
loaded.tokenizer.save_pretrained(out)
compute_alike(loaded.model)
said = logits(PeftModel.from_pretrained(loaded.model, adapter)).float().contiguous()
save_file({"logits": said}, Path(out).with_suffix(".safetensors"))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "apart"), [("4", 1e-4), ("8", 0.05)])
def test_weights_stored_rounded_come_back_with_the_adapter_that_was_trained_on_them(
    start: ModelRef, tmp_path: Path, bits: str, apart: float
) -> None:
    """In 8 bits the library rounds what enters a layer too, which no weights can hold."""
    if not (QUANTISED / "bitsandbytes").is_dir():
        missing("no bitsandbytes beside this environment; `make test-slow` puts it there")
    learned = made_adapter(start, tmp_path / "learned", seed=4)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(QUANTISED), str(Path.cwd())))}

    def run(*words: str) -> None:
        told = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, check=False)
        assert told.returncode == 0, told.stdout + told.stderr

    stored = tmp_path / "stored"
    run("-c", _STORE, start.path, start.manifest_sha256, learned.path, str(stored), bits)
    assert "quantization_config" in json.loads((stored / "config.json").read_text())
    out = str(tmp_path / "full")
    run("-m", "ml.full_weights", "--model", str(stored), "--adapter", learned.path, "--out", out)
    made = load_model(model_ref(tmp_path / "full"))
    expected = load_file(tmp_path / "stored.safetensors")["logits"]
    assert {parameter.dtype for parameter in made.model.parameters()} == {torch.float32}
    assert float((logits(made.model) - expected).abs().max()) < apart
    assert (made.model.generation_config.temperature, made.model.generation_config.top_p) == (0.7, 0.9)
    assert float((logits(load_model(start).model) - expected).abs().max()) > 10 * apart
