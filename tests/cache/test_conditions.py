"""The cache with LoRA, random stages, accumulated gradients and bfloat16."""

from __future__ import annotations

import paddle
from cached import Losses, both, by_hand, random_batches
from networks import Images, conv_net, model_for, moved, values
from paddle import nn
from trainers import tiny_bert

from paddle_freeze_callback import FreezeSchedule, HeadOnly, RandomStages


def test_lora_weights_inside_a_frozen_block_leave_what_lies_before_them():
    """Even inside the block: attention and norm come before the layer with LoRA."""
    from paddlenlp.peft import LoRAConfig, LoRAModel

    model = LoRAModel(
        tiny_bert(),
        LoRAConfig(target_modules=[".*layers.2.linear1"], r=2, lora_alpha=4),
    )
    model.mark_only_lora_as_trainable()
    schedule = FreezeSchedule(stages=["re:.*lora.*", "*"], unfreeze_at={0: "re:.*lora.*"},
                              cache="memory")  # fmt: skip
    _, statistics, _ = by_hand(model, schedule, random_batches([8], whole=50))
    assert statistics.boundary == ("model.bert.encoder.layers.2.norm1",)
    assert statistics.hits > 0


def test_random_stages_use_it_whenever_a_prefix_is_frozen():
    plan = RandomStages(k=1, every="6 steps", always=["head"])
    runs = []
    for options in ({"frozen_dropout": "eval"}, {"cache": "memory"}):
        paddle.seed(5)
        schedule = FreezeSchedule(strategy=plan, verify=True, **options)
        runs.append(by_hand(conv_net(), schedule, random_batches([1, 6, 6], 2), epochs=12))
    assert runs[0][0] == runs[1][0]
    assert runs[1][1].hits > 0


def test_gradient_accumulation_and_a_smaller_last_batch():
    runs = []
    for options in ({"frozen_dropout": "eval"}, {"cache": "memory"}):
        losses = Losses()
        schedule = FreezeSchedule(strategy=HeadOnly(), **options)
        model = model_for(conv_net())
        model.fit(
            Images(22), batch_size=4, epochs=4, shuffle=False, verbose=0,
            accumulate_grad_batches=2, callbacks=[schedule, losses],
        )  # fmt: skip
        runs.append((losses.all, values(model.network)))
    assert runs[0][0] == runs[1][0]
    assert not moved(runs[0][1], runs[1][1])
    assert schedule.run.cache.rows == 22


def test_bfloat16_features_are_kept_as_they_are():
    def build():
        network = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 2))
        return network

    class Last(nn.Layer):
        """The embeddings in bfloat16 (a matrix product has no CPU kernel for it)."""

        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(9, 6), nn.Linear(6, 2)
            self.embedding.to(dtype="bfloat16")

        def forward(self, x):
            return self.head(self.embedding(x).astype("float32"))

    statistics, _ = both(Last, random_batches([5], whole=9), {0: "head"})
    assert statistics.nbytes == 16 * 5 * 6 * 2
    assert statistics.hits > 0
