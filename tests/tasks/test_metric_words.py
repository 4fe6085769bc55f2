"""What the built-in tasks' metrics say of themselves is what is known of the same metrics of 0.1.0."""

from dataclasses import replace

from qeval.core.record import completed
from qeval.engines.base import Completion
from qeval.sandbox import Verdict
from qeval.tasks import perplexity, speed, tensor_stats
from qeval.tasks.coding.grader import pass_metrics
from qeval.tasks.coding.samples import Sample
from qeval.tasks.coding.verdicts import Graded
from qeval.tensor_stats.rows import TensorRow


class Engine:
    vocab_size = 9

    def generate(self, prompts, sampling, stop=None):
        yield Completion(0, 0, [1] * sampling.max_new_tokens, "length")


def of_tasks():
    row = TensorRow("weight", 0, "w", ("w",), 9, 0, 1.0, 0.0, 1.0, 3.0, 1.0, 0, 3, (), 20.0)
    rows = [row, replace(row, kind="input"), replace(row, kind="key")]
    graded = [
        Graded(Sample(name, "", finish=finish), Verdict("0", "passed", "", 0.0, "none"))
        for name, finish in (("a", "stop"), ("b", "stop"))
    ]
    broken = [*graded[:1], replace(graded[1], sample=replace(graded[1].sample, finish="nonfinite"))]
    return [
        perplexity._ppl(3.0, 0.1, [3.0, 3.0], 0.0, "gptq/x"),
        perplexity._cost("step_ms", 5.0, "ms", "gptq/x", 3),
        perplexity._cost("allocated_mib", 5.0, "MiB", "gptq/x", 3),
        *speed._Runs(Engine(), 2).prefill(4),
        speed._rate("decode_tok_s", None, "speed/d", n=2),
        *tensor_stats._metrics(rows, "tensor_stats/x"),
        *pass_metrics(graded, [1], "humaneval/base"),
        *pass_metrics(broken, [1], "humaneval/base"),
    ]


def test_a_metric_of_0_1_0_says_what_the_same_task_says_today():
    metrics = of_tasks()
    assert len({m.name for m in metrics}) == 12
    for metric in metrics:
        assert None not in (metric.better, metric.pairs, metric.change)
        words = ("better", "pairs", "change", "cost", "heading", "group")
        assert completed(replace(metric, **dict.fromkeys(words))) == completed(metric), metric.name
