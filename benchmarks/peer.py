"""Our numbers beside those of the field's reference implementation, and what each costs in CPU seconds.

    python -m benchmarks.peer --peer DIR --data DIR [--items N] [--threads N] [--repeats N]

`--peer` is a copy of the repository locuslab/open-unlearning (read at commit d3d7cf9), whose own code is run, with
the packages it imports (`pip install datasets omegaconf scikit-learn`); none of it is part of this project.
`--data` is a directory with TOFU's files as JSON Lines. The model is a small one made here and trained for a minute
on those questions, so that no score is trivial. TOFU's paraphrased and perturbed answers of fictitious authors are not
in that data; stand-ins are made from the answers to other questions, the same for both columns.

Exits with 1 when two columns differ by more than 1e-4.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from scipy import stats
from torch import Tensor

from ml.attacks.generation import NEW_TOKENS, greedy_answers
from ml.attacks.gradient_norm import gradient_norms
from ml.attacks.reference_cache import ReferenceCache
from ml.data.collate import EncodedText
from ml.data.question_answers import PromptTemplate, encode_answer
from ml.field_suite import answer_losses, forget_numbers, probabilities, reference_losses
from ml.finetune import finetune
from ml.loop import LoopSettings
from ml.metrics.forget_quality import forget_quality
from ml.metrics.membership import membership_auc
from ml.metrics.rouge import rouge
from ml.metrics.truth_ratio import closer_to_one, option_probability, share_of_right, true_better, truth_ratio
from ml.metrics.utility import model_utility
from ml.models.load import LoadedModel, load_model, model_ref
from ml.models.save import publish_model, save_model
from ml.models.scratch import END_TOKEN, ModelShape, train_tokenizer, untrained_llama

TOLERANCE: Final = 1e-4
SHAPE: Final = ModelShape(hidden=192, layers=4, heads=6, feed_forward=512, vocabulary=2048, context=384)
BATCHES: Final = (4, 8, 16, 32, 64)
BUDGETS: Final = (256, 512, 1024, 2048, 4096)
WRONG_ANSWERS: Final = 5
MIN_K: Final = 0.4
PER_CENT: Final = frozenset({"privleak", "relative_difference"})
# The end-of-sequence token inside the prompt: the reference code masks it wherever it stands (pad = end).
MARKED: Final = PromptTemplate("Question: ", f"{END_TOKEN}\n", "Answer:\n")
PLAIN: Final = PromptTemplate("Question: ", "\n", "Answer:\n")
Numbers = dict[str, float]


@dataclass(frozen=True, slots=True)
class Item:
    """A question, its answer, another right answer, and wrong ones."""

    question: str
    answer: str
    paraphrase: str
    wrong: tuple[str, ...]


# --- what both columns read -----------------------------------------------------------------------------------------


def read_items(path: Path, limit: int) -> list[Item]:
    """Read TOFU's JSON Lines; what a file does not have is made from its other answers."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()][:limit]
    answers = [str(row["answer"]) for row in rows]
    return [
        Item(
            str(row["question"]),
            answers[i],
            str(row.get("paraphrased_answer") or f"In other words: {answers[i]}"),
            tuple(
                row.get("perturbed_answer") or [answers[(i + step) % len(rows)] for step in range(1, WRONG_ANSWERS + 1)]
            ),
        )
        for i, row in enumerate(rows)
    ]


@dataclass(frozen=True, slots=True)
class Inputs:
    """The sets, the model under test, a reference model, and its losses as they are kept on file."""

    forget: list[Item]
    holdout: list[Item]
    utility: Mapping[str, list[Item]]
    loaded: LoadedModel
    reference: LoadedModel
    on_file: ReferenceCache


def make_inputs(data: Path, folder: Path, *, items: int) -> Inputs:
    """Read the data and train the two models."""
    forget = read_items(data / "forget01.jsonl", items)
    holdout = read_items(data / "forget10_first300.jsonl", items)
    utility = {
        "retain": read_items(data / "retain_300.jsonl", items),
        "ra": read_items(data / "real_authors_perturbed.jsonl", items),
        "wf": read_items(data / "world_facts_perturbed.jsonl", items),
    }
    sample = [f"{i.question} {i.answer}" for group in (forget, holdout, *utility.values()) for i in group]
    tokenizer = train_tokenizer(sample, vocabulary=SHAPE.vocabulary, context=SHAPE.context)
    publish_model(untrained_llama(SHAPE, tokenizer, seed=0), tokenizer, folder / "untrained")
    reference, loaded = (load_model(model_ref(folder / "untrained")) for _ in range(2))
    known = [*forget, *utility["retain"], *utility["wf"]]
    for model, taught, steps in ((reference, utility["retain"], 20), (loaded, known, 120)):
        rows = [_encode(model, t, item.question, item.answer) for t in (MARKED, PLAIN) for item in taught]
        settings = LoopSettings(steps=steps, learning_rate=3e-3, warmup_steps=5)
        finetune(model.model, rows, settings, pad_id=model.pad_id, batch_rows=16, seed=0)
        model.model.eval()
    # The cache knows a model by its files, so the reference has files of its own.
    save_model(reference.model, tokenizer, folder / "reference")
    reference = load_model(model_ref(folder / "reference"))
    on_file = ReferenceCache(folder / "losses", reference, mode="parity")
    return Inputs(forget, holdout, utility, loaded, reference, on_file)


def _encode(loaded: LoadedModel, template: PromptTemplate, question: str, answer: str) -> EncodedText:
    return encode_answer(loaded.tokenizer, template, question, answer, context=loaded.context)


# --- our column -----------------------------------------------------------------------------------------------------


def our_likelihood(inputs: Inputs, budget: int, *, on_file: bool) -> Numbers:
    """The whole likelihood block, as the reference code aggregates it.

    Args:
        on_file: take the reference model's losses from the cache, which is filled where it lacks some; else measure.
    """
    forget, holdout = (_texts(inputs, group) for group in (inputs.forget, inputs.holdout))
    texts = [*forget, *holdout]
    known = inputs.on_file.losses(texts, lambda some: _losses(inputs, some)) if on_file else _losses(inputs, texts)
    return forget_numbers(inputs.loaded, forget, holdout, known=known, mode="parity", budget=budget)


def _losses(inputs: Inputs, texts: Sequence[EncodedText]) -> Tensor:
    return reference_losses(inputs.reference, texts, mode="parity")


def _texts(inputs: Inputs, group: Sequence[Item]) -> list[EncodedText]:
    return [_encode(inputs.loaded, MARKED, item.question, item.answer) for item in group]


def our_gradient_norm(inputs: Inputs) -> Numbers:
    """GradNorm as an area, and its mean over the forget set."""
    scores = gradient_norms(inputs.loaded, [*_plain(inputs, inputs.forget), *_plain(inputs, inputs.holdout)])
    count = len(inputs.forget)
    return {"auc_gradient_norm": membership_auc(scores[:count], scores[count:]), "norm": float(scores[:count].mean())}


def _plain(inputs: Inputs, group: Sequence[Item]) -> list[EncodedText]:
    return [_encode(inputs.loaded, PLAIN, item.question, item.answer) for item in group]


def our_truth_ratios(inputs: Inputs) -> Numbers:
    """Truth ratios of the forget set in all three forms, and forget quality against the reference model."""
    numbers, ratios = {}, []
    for loaded in (inputs.loaded, inputs.reference):
        right = [_encode(loaded, MARKED, i.question, i.paraphrase) for i in inputs.forget]
        wrong = [[_encode(loaded, MARKED, i.question, w) for w in i.wrong] for i in inputs.forget]
        losses = answer_losses(loaded, right, wrong, mode="parity")
        ratios.append(truth_ratio(*losses, mode="parity"))
        numbers |= {"truth_ratio.share": float(share_of_right(*losses, mode="parity").mean())} if not numbers else {}
    quality = forget_quality(ratios[0], ratios[1])
    return numbers | {
        "truth_ratio.closer_to_1": closer_to_one(ratios[0], mode="parity"),
        "truth_ratio.true_better": true_better(ratios[0]),
        "forget_quality.p": quality.p_value,
    }


def our_utility(inputs: Inputs) -> Numbers:
    """TOFU's nine utility aggregates and their harmonic mean."""
    numbers: Numbers = {}
    for name, group in inputs.utility.items():
        right = [_encode(inputs.loaded, PLAIN, i.question, i.answer) for i in group]
        other = [_encode(inputs.loaded, PLAIN, i.question, i.paraphrase) for i in group]
        wrong = [[_encode(inputs.loaded, PLAIN, i.question, w) for w in i.wrong] for i in group]
        losses, mistaken = answer_losses(inputs.loaded, right, wrong, mode="parity")
        correct = losses
        if name == "retain":
            correct, _ = answer_losses(inputs.loaded, other, wrong, mode="parity")
            numbers[f"{name}.prob"] = float(probabilities(losses).mean())
        else:
            shares = option_probability(probabilities(losses), probabilities(mistaken), mode="parity")
            numbers[f"{name}.prob"] = float(shares.mean())
        numbers[f"{name}.truth_ratio"] = true_better(truth_ratio(correct, mistaken, mode="parity"))
        numbers[f"{name}.rouge"] = _our_rouge(inputs, group)["rougeL_recall"]
    return numbers | {"model_utility": model_utility(list(numbers.values()))}


def our_rouge(inputs: Inputs) -> Numbers:
    """The three ROUGE scores of greedy answers to the forget set's questions."""
    return _our_rouge(inputs, inputs.forget)


def _our_rouge(inputs: Inputs, group: Sequence[Item]) -> Numbers:
    texts = _plain(inputs, group)
    answers = greedy_answers(inputs.loaded, [t.ids[: t.first_label] for t in texts], new_tokens=NEW_TOKENS)
    said = inputs.loaded.tokenizer.batch_decode(answers, skip_special_tokens=True)
    scores = [rouge(text.strip(), item.answer) for text, item in zip(said, group, strict=True)]
    forms = {
        "rougeL_recall": [score.recall for score in scores],
        "rougeL_f1": [score.f1 for score in scores],
        "rouge1_recall": [score.word_recall for score in scores],
    }
    return {name: sum(values) / len(values) for name, values in forms.items()}


# --- the reference implementation's column --------------------------------------------------------------------------


class Peer:
    """The reference implementation's own metrics, datasets and collators, loaded from a copy of its repository."""

    def __init__(self, repository: Path, inputs: Inputs, folder: Path) -> None:
        source = repository / "src"
        sys.path.insert(0, str(source))
        # Its package entry point imports a benchmark harness that none of these metrics needs.
        package = types.ModuleType("evals")
        package.__path__ = [str(source / "evals")]
        sys.modules["evals"] = package
        os.environ.update({"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"})
        from data.collators import DataCollatorForSupervisedDataset  # type: ignore[import-not-found]
        from data.qa import QADataset  # type: ignore[import-not-found]
        from evals.metrics import METRICS_REGISTRY  # type: ignore[import-not-found]

        self._metrics, self._dataset, self._collator = METRICS_REGISTRY, QADataset, DataCollatorForSupervisedDataset
        self._inputs, self._folder = inputs, folder
        self.tokenizer = inputs.loaded.tokenizer
        self.tokenizer.pad_token = self.tokenizer.eos_token
        self.batch = 32

    def data(self, group: Sequence[Item], template: PromptTemplate, answer: str, *, asking: bool = False) -> Any:
        """One of its datasets over a group of items; `answer` names the field that is the answer."""
        rows = [{"question": i.question, "answer": getattr(i, answer)} for i in group]
        path = self._folder / f"{abs(hash(json.dumps(rows)))}.jsonl"
        listed = [{**r, "answer": list(r["answer"])} if isinstance(r["answer"], tuple) else r for r in rows]
        path.write_text("".join(json.dumps(row) + "\n" for row in listed), encoding="utf-8")
        tags = {
            "apply_chat_template": False,
            "user_start_tag": template.user_start,
            "user_end_tag": template.user_end,
            "asst_start_tag": template.assistant_start,
            "asst_end_tag": "",
        }
        files = {"path": "json", "data_files": str(path), "split": "train", "cache_dir": str(self._folder / "cache")}
        with _silenced():
            return self._dataset(files, tags, self.tokenizer, predict_with_generate=asking)

    def call(self, metric: str, loaded: LoadedModel, *, side: str = "right", **given: Any) -> dict[str, Any]:
        """Run one of its metrics."""
        collator = self._collator(self.tokenizer, padding_side=side, index="index")
        with _silenced():
            result = self._metrics[metric]._metric_fn(
                loaded.model, tokenizer=self.tokenizer, collators=collator, **{"batch_size": self.batch, **given}
            )
        return dict(result)

    def likelihood(self) -> Numbers:
        """The whole likelihood block, metric by metric."""
        inputs = self._inputs
        forget = self.data(inputs.forget, MARKED, "answer")
        both = {"forget": forget, "holdout": self.data(inputs.holdout, MARKED, "answer")}
        numbers = {
            name: float(self.call(metric, inputs.loaded, data=forget)["agg_value"])
            for name, metric in (
                ("probability", "probability"),
                ("exact_memorisation", "exact_memorization"),
                ("extraction_strength", "extraction_strength"),
            )
        }
        areas = {
            "loss": self.call("mia_loss", inputs.loaded, data=both),
            "min_k": self.call("mia_min_k", inputs.loaded, data=both, k=MIN_K),
            "min_k_plus_plus": self.call("mia_min_k_plus_plus", inputs.loaded, data=both, k=MIN_K),
            "zlib": self.call("mia_zlib", inputs.loaded, data=both),
            "reference": self._reference(both),
        }
        numbers |= {f"auc_{name}": float(result["agg_value"]) for name, result in areas.items()}
        known = {"pre_compute": {"forget": areas["min_k"]}, "ref_value": 0.5}
        return numbers | {
            name: float(self.call(metric, inputs.loaded, **known)["agg_value"])
            for name, metric in (("privleak", "privleak"), ("relative_difference", "rel_diff"))
        }

    def _reference(self, both: Mapping[str, Any]) -> dict[str, Any]:
        from evals.metrics.mia.reference import ReferenceAttack  # type: ignore[import-not-found]
        from evals.metrics.mia.utils import mia_auc  # type: ignore[import-not-found]

        # Its metric loads the reference from disk; here it is in memory already, as it is for us.
        with _silenced():
            return dict(
                mia_auc(
                    ReferenceAttack,
                    self._inputs.loaded.model,
                    data=both,
                    collator=self._collator(self.tokenizer, padding_side="right", index="index"),
                    batch_size=self.batch,
                    reference_model=self._inputs.reference.model,
                )
            )

    def seconds_at(self, batch: int) -> float:
        """CPU seconds of the likelihood block at a batch size."""
        self.batch = batch
        return cpu_seconds(self.likelihood, 1)[0]

    def gradient_norm(self) -> Numbers:
        """GradNorm, one text at a time as its configuration has it."""
        inputs = self._inputs
        both = {
            "forget": self.data(inputs.forget, PLAIN, "answer"),
            "holdout": self.data(inputs.holdout, PLAIN, "answer"),
        }
        inputs.loaded.model.requires_grad_(True)
        result = self.call("mia_gradnorm", inputs.loaded, data=both, p=2, batch_size=1)
        inputs.loaded.model.zero_grad(set_to_none=True)
        return {"auc_gradient_norm": float(result["agg_value"]), "norm": float(result["forget"]["agg_value"])}

    def truth_ratios(self) -> Numbers:
        """Truth ratios of the forget set, and its KS test against the reference model."""
        inputs, group, ratios = self._inputs, self._inputs.forget, []
        numbers: Numbers = {}
        for loaded in (inputs.loaded, inputs.reference):
            right = self.call("probability", loaded, data=self.data(group, MARKED, "paraphrase"))
            wrong = self.call("probability", loaded, data=self.data(group, MARKED, "wrong"))
            known = {"correct": right, "wrong": wrong}
            forms = {
                "closer_to_1": "closer_to_1_better",
                "true_better": "true_better",
                "share": "prob_mean",
            }
            results = {
                name: self.call("truth_ratio", loaded, pre_compute=known, aggregator=form)
                for name, form in forms.items()
            }
            ratios.append([row["score"] for row in results["closer_to_1"]["value_by_index"].values()])
            if not numbers:
                numbers = {f"truth_ratio.{name}": float(r["agg_value"]) for name, r in results.items()}
        return numbers | {"forget_quality.p": float(stats.ks_2samp(ratios[0], ratios[1]).pvalue)}

    def utility(self) -> Numbers:
        """TOFU's nine utility aggregates and their harmonic mean."""
        loaded, results = self._inputs.loaded, {}
        for name, group in self._inputs.utility.items():
            right = self.call("probability", loaded, data=self.data(group, PLAIN, "answer"))
            wrong = self.call("probability", loaded, data=self.data(group, PLAIN, "wrong"))
            correct = right
            if name == "retain":
                correct = self.call("probability", loaded, data=self.data(group, PLAIN, "paraphrase"))
                results[f"{name}.prob"] = right
            else:
                known = {"correct": right, "wrong": wrong}
                results[f"{name}.prob"] = self.call("probability_w_options", loaded, pre_compute=known)
            known = {"correct": correct, "wrong": wrong}
            results[f"{name}.truth_ratio"] = self.call(
                "truth_ratio", loaded, pre_compute=known, aggregator="true_better"
            )
            results[f"{name}.rouge"] = self._rouge(group, "rougeL_recall")
        whole = self.call("hm_aggregate", loaded, pre_compute=results)
        numbers = {name: float(result["agg_value"]) for name, result in results.items()}
        return numbers | {"model_utility": float(whole["agg_value"])}

    def rouge(self) -> Numbers:
        """Its three ROUGE scores of greedy answers to the forget set's questions."""
        forms = ("rougeL_recall", "rougeL_f1", "rouge1_recall")
        rows = self._rouge(self._inputs.forget, forms[0])["value_by_index"].values()
        return {name: sum(float(row[name]) for row in rows) / len(rows) for name in forms}

    def _rouge(self, group: Sequence[Item], form: str) -> dict[str, Any]:
        from omegaconf import OmegaConf  # type: ignore[import-not-found]

        given = OmegaConf.create({"do_sample": False, "max_new_tokens": NEW_TOKENS, "use_cache": True})
        data = self.data(group, PLAIN, "answer", asking=True)
        return self.call("rouge", self._inputs.loaded, side="left", data=data, generation_args=given, rouge_type=form)


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Its progress bars and prints are not ours."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


# --- the table ------------------------------------------------------------------------------------------------------


def compare(title: str, ours: Callable[[], Numbers], theirs: Callable[[], Numbers], *, repeats: int) -> bool:
    """Print both columns and the CPU seconds each took; `True` when every number agrees."""
    our_seconds, mine = cpu_seconds(ours, repeats)
    their_seconds, peer = cpu_seconds(theirs, 1)
    agreed = True
    sys.stdout.write(f"{title}\n  {'':<28}{'ours':>14}{'reference':>14}{'difference':>12}\n")
    for name, value in mine.items():
        apart = abs(value - peer[name])
        scale = 100 if name in PER_CENT else 1
        agreed &= apart <= TOLERANCE * scale
        sys.stdout.write(f"  {name:<28}{value:>14.6f}{peer[name]:>14.6f}{apart:>12.1e}\n")
    ratio = their_seconds / our_seconds
    sys.stdout.write(f"  {'CPU seconds':<28}{our_seconds:>14.2f}{their_seconds:>14.2f}{ratio:>11.1f}x\n\n")
    return agreed


def cpu_seconds(work: Callable[[], Numbers], repeats: int) -> tuple[float, Numbers]:
    """The least CPU time of some repeats, and the result."""
    best, result = float("inf"), {}
    for _ in range(repeats):
        started = time.process_time()
        result = work()
        best = min(best, time.process_time() - started)
    return best, result


def main(arguments: Sequence[str] | None = None) -> int:
    """Print every comparison; 1 when two columns differ."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peer", description="Compare with the reference code.")
    parser.add_argument("--peer", type=Path, required=True, help="a copy of locuslab/open-unlearning")
    parser.add_argument("--data", type=Path, required=True, help="TOFU's files as JSON Lines")
    parser.add_argument("--items", type=int, default=40, help="questions of each set")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs = make_inputs(options.data, folder, items=options.items)
        peer = Peer(options.peer, inputs, folder)
        our_likelihood(inputs, BUDGETS[0], on_file=True)
        budget = _best(BUDGETS, lambda size: cpu_seconds(lambda: our_likelihood(inputs, size, on_file=True), 1)[0])
        peer.batch = _best(BATCHES, peer.seconds_at)
        sizes = f"both at their best: {budget} tokens, {peer.batch} rows"
        agreed = [
            compare(
                f"likelihood block, the reference model's losses on file ({sizes})",
                lambda: our_likelihood(inputs, budget, on_file=True),
                peer.likelihood,
                repeats=options.repeats,
            ),
            compare(
                f"likelihood block, the reference model's losses measured ({sizes})",
                lambda: our_likelihood(inputs, budget, on_file=False),
                peer.likelihood,
                repeats=options.repeats,
            ),
            compare("gradient norms", lambda: our_gradient_norm(inputs), peer.gradient_norm, repeats=1),
            compare("truth ratios", lambda: our_truth_ratios(inputs), peer.truth_ratios, repeats=options.repeats),
            compare("generated answers", lambda: our_rouge(inputs), peer.rouge, repeats=1),
            compare("model utility", lambda: our_utility(inputs), peer.utility, repeats=1),
        ]
    return 0 if all(agreed) else 1


def _best(sizes: Sequence[int], seconds: Callable[[int], float]) -> int:
    return min(sizes, key=seconds)


if __name__ == "__main__":
    raise SystemExit(main())
