"""What is to be kept of an output where nobody says: one that the changed model can lose."""

import pytest
import torch
from torch import nn

import netspectra as ns
from netspectra.verbs.compress.objective import as_objective, pooled

transformers = pytest.importorskip("transformers")


def batch(rows: int = 24) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(3, 40, (rows, 8), generator=torch.Generator().manual_seed(0))}


def bert(kind: str, **more):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.BertConfig(
            vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=16, **more,
        )  # fmt: skip
        return getattr(transformers, kind)(config).eval()


def test_one_logit_is_a_number_not_a_choice():
    """The softmax of a single number is 1 whatever the model does: a loss that nothing can raise."""
    model = bert("BertForSequenceClassification", num_labels=1)
    assert as_objective(None, model, batch()).name == "output"
    plan = ns.quantize(model, bits=4, calibration=[batch()])
    plan.apply(model)
    assert plan.finish["final"]["loss"] > 0 and sum(one.loss or 0 for one in plan) > 0
    with pytest.raises(ns.InputRefused, match="logits of one class"):
        ns.quantize(bert("BertForSequenceClassification", num_labels=1), calibration=[batch()], objective="logits")


@pytest.mark.parametrize(
    ("more", "name"),
    [
        ({"num_labels": 3}, "logits"),
        ({"num_labels": 3, "problem_type": "regression"}, "output"),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, "output"),
    ],
)
def test_several_logits_by_what_they_are_for(more, name):
    assert as_objective(None, bert("BertForSequenceClassification", **more), batch()).name == name


def test_logits_of_an_image_are_no_choice_along_its_width():
    class Segmented(nn.Module):
        def forward(self, x):
            return {"logits": x}

    assert as_objective(None, Segmented(), torch.randn(2, 5, 4, 4)).name == "output"


@pytest.mark.parametrize("shape", [(24, 8, 40), (24, 1, 40), (24, 40)])
def test_a_prediction_of_the_next_token_alone_is_one(shape):
    class Next(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.head = nn.Embedding(40, 6), nn.Linear(6, 40)

        def forward(self, ids):
            x = self.head(self.words(ids))
            return (x if shape[1] == 8 else x[:, -1:]).reshape(shape), None

    assert as_objective(None, Next(), batch()["input_ids"]).name == "logits"


def test_an_answer_ends_as_well_as_it_begins():
    model = bert("BertForQuestionAnswering")
    objective = as_objective(None, model, batch())
    with torch.no_grad():
        signal, out = objective.of(model, batch()), model(**batch())
    assert objective.kind == "divergence"
    assert torch.equal(signal, torch.cat([out.start_logits, out.end_logits]))
    plan = ns.quantize(model, bits=4, calibration=[batch()])
    assert plan.options["objective"] == "logits" and plan["qa_outputs"].loss > 0


def test_a_mask_of_other_tokens_is_none():
    """As where a model shortens what it reads, or sets tokens of its own before it."""
    hidden = torch.randn(2, 3, 4)
    found = pooled(hidden, {"attention_mask": torch.ones(2, 5)})
    torch.testing.assert_close(found, nn.functional.normalize(hidden.mean(1), dim=-1))
