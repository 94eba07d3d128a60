"""The callbacks of Lightning and transformers, in real trainings."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from netspectra.timeline import Timeline
from tests.verbs.watch.trainings import batch


def data(count: int) -> torch.utils.data.TensorDataset:
    parts = [batch(step) for step in range(count)]
    return torch.utils.data.TensorDataset(*(torch.cat([part[i] for part in parts]) for i in range(2)))


@pytest.mark.filterwarnings("ignore")
def test_lightning(tmp_path):
    lightning = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")
    from netspectra.faces.lightning import MonitorCallback

    class Model(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 8))

        def training_step(self, batch, place):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=1e-3)

    def fit(callbacks, **more):
        lightning.seed_everything(0, verbose=False)
        trainer = lightning.Trainer(
            max_epochs=more.pop("epochs", 2), accelerator="cpu", logger=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=tmp_path, callbacks=callbacks, enable_checkpointing=False,
        )  # fmt: skip
        model = Model()
        loader = torch.utils.data.DataLoader(data(20), batch_size=64, shuffle=True)
        trainer.fit(model, loader, **more)
        trainer.save_checkpoint(tmp_path / "a.ckpt")
        return model

    alone = fit([])
    watched = fit([MonitorCallback(tmp_path / "a.run", budget=None)])
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), watched.parameters(), strict=True))
    found = Timeline.read(tmp_path / "a.run")
    assert found.names == ["net.0.weight", "net.2.weight"]
    assert found.steps.tolist() == [0, 10, 20, 30, 40]
    assert found.curve("net.0.weight", "gradient_norm")[0].tolist() == [10, 20, 30, 40]
    assert len(found.notes["loss"][0]) >= 3
    assert found.state["ended"]
    fit([MonitorCallback(tmp_path / "a.run", budget=None)], epochs=3, ckpt_path=tmp_path / "a.ckpt")
    assert Timeline.read(tmp_path / "a.run").steps.tolist() == [0, 10, 20, 30, 40, 50, 60]


@pytest.mark.filterwarnings("ignore")
def test_transformers(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("accelerate", reason="the Trainer needs accelerate")
    from netspectra.faces.transformers import MonitorCallback

    config = transformers.GPT2Config(vocab_size=64, n_positions=16, n_embd=32, n_layer=2, n_head=2)
    generator = torch.Generator().manual_seed(0)
    rows = [{"input_ids": row, "labels": row} for row in torch.randint(0, 64, (320, 16), generator=generator)]

    def fit(callbacks, steps, resume=None):
        transformers.set_seed(0)
        model = transformers.GPT2LMHeadModel(config)
        arguments = transformers.TrainingArguments(
            str(tmp_path / "out"), max_steps=steps, per_device_train_batch_size=8, report_to=[], logging_steps=5,
            save_steps=20, use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        trainer = transformers.Trainer(model, arguments, train_dataset=rows, callbacks=callbacks)
        trainer.train(resume_from_checkpoint=resume)
        return model

    alone = fit([], 20)
    watched = fit([MonitorCallback(tmp_path / "a.run", budget=None)], 20)
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), watched.parameters(), strict=True))
    found = Timeline.read(tmp_path / "a.run")
    assert found.steps.tolist() == [0, 10, 20]
    assert "transformer.h.0.attn.c_attn.weight[q]" in found.names
    assert found.curve("transformer.wte.weight", "gradient_norm")[1][-1] > 0  # looked at before they were zeroed
    assert {"loss", "learning_rate"} <= set(found.notes)
    fit([MonitorCallback(tmp_path / "a.run", budget=None)], 30, str(tmp_path / "out" / "checkpoint-20"))
    assert Timeline.read(tmp_path / "a.run").steps.tolist() == [0, 10, 20, 30]
