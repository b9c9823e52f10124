"""Networks as users write them around pretrained ones, each tiny, with a forward."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable

import paddle
from paddle import nn
from paddle.nn import functional as F  # noqa: N812
from paddle.vision import models

SIZES = {
    "vocab_size": 99,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}

#: Every network by its title: how to build it, and what to call it with.
NETWORKS: dict[str, tuple[Callable[[], nn.Layer], Callable[[], tuple]]] = {}
#: Those that need PaddleNLP's encoders.
OF_PADDLENLP: set[str] = set()


def tokens() -> tuple:
    return (paddle.randint(8, 90, [2, 8]),)


def image() -> tuple:
    return (paddle.rand([2, 3, 64, 64]),)


def both() -> tuple:
    return tokens() + image()


def pair() -> tuple:
    return tokens() + tokens()


def vector() -> tuple:
    return (paddle.rand([2, 5, 8]),)


def add(title: str, inputs: Callable[[], tuple], nlp: bool = False):
    def enter(build):
        NETWORKS[title] = (build, inputs)
        if nlp:
            OF_PADDLENLP.add(title)
        return build

    return enter


def nlp():
    return importlib.import_module("paddlenlp.transformers")


def ernie() -> nn.Layer:
    return nlp().ErnieModel(nlp().ErnieConfig(**SIZES))


def bert() -> nn.Layer:
    return nlp().BertModel(nlp().BertConfig(**SIZES))


def resnet(**options) -> nn.Layer:
    return models.resnet18(num_classes=0, **options)


# ---------------------------------------------------------------- around a language model


@add("ptm and a classifier", tokens, nlp=True)
class PtmLinear(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.ptm = ernie()
        self.classifier = nn.Linear(16, 2)

    def forward(self, ids):
        return self.classifier(self.ptm(ids)[1])


@add("ptm and two new layers", tokens, nlp=True)
class PtmTwoLayers(PtmLinear):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, ids):
        return self.classifier(self.linear(self.ptm(ids)[1]))


@add("encoder of any name and two new layers", tokens, nlp=True)
class AnyName(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.my_text_part = ernie()
        self.a = nn.Linear(16, 16)
        self.b = nn.Linear(16, 2)

    def forward(self, ids):
        return self.b(self.a(self.my_text_part(ids)[1]))


@add("intent and slots", tokens, nlp=True)
class IntentSlots(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.bert = bert()
        self.intent = nn.Linear(16, 4)
        self.slot = nn.Linear(16, 6)

    def forward(self, ids):
        sequence, pooled = self.bert(ids)
        return self.intent(pooled), self.slot(sequence)


@add("head defined before the encoder", tokens, nlp=True)
class HeadFirst(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(16, 2)
        self.encoder = ernie()

    def forward(self, ids):
        return self.classifier(self.encoder(ids)[1])


@add("BERT and TextCNN", tokens, nlp=True)
class BertTextCNN(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.bert = bert()
        self.convs = nn.LayerList([nn.Conv1D(16, 4, size) for size in (2, 3, 4)])
        self.fc = nn.Linear(12, 2)

    def forward(self, ids):
        x = self.bert(ids)[0].transpose([0, 2, 1])
        return self.fc(paddle.concat([conv(x).max(axis=-1) for conv in self.convs], axis=-1))


@add("BERT and BiLSTM", tokens, nlp=True)
class BertBiLSTM(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.bert = bert()
        self.lstm = nn.LSTM(16, 8, direction="bidirect")
        self.fc = nn.Linear(16, 5)

    def forward(self, ids):
        return self.fc(self.lstm(self.bert(ids)[0])[0])


@add("BERT, BiLSTM and CRF", tokens, nlp=True)
class BertBiLSTMCRF(BertBiLSTM):
    def __init__(self) -> None:
        super().__init__()
        self.crf = importlib.import_module("paddlenlp.layers").LinearChainCrf(5)


@add("BERT with its last hidden states mixed", tokens, nlp=True)
class Mixed(PtmLinear):
    def __init__(self) -> None:
        super().__init__()
        self.mix = self.create_parameter([3])


@add("siamese, one shared encoder", pair, nlp=True)
class Siamese(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.ptm = ernie()
        self.classifier = nn.Linear(48, 2)

    def forward(self, one, two):
        u, v = self.ptm(one)[1], self.ptm(two)[1]
        return self.classifier(paddle.concat([u, v, (u - v).abs()], axis=-1))


@add("dual encoder with a temperature", pair, nlp=True)
class DualEncoder(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.query_encoder = ernie()
        self.title_encoder = ernie()
        self.temperature = self.create_parameter([1])

    def forward(self, one, two):
        return self.query_encoder(one)[1] @ self.title_encoder(two)[1].t() * self.temperature


@add("SimCSE, an encoder alone", tokens, nlp=True)
class SimCSE(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.ptm = ernie()

    def forward(self, ids):
        return self.ptm(ids)[1]


@add("SimCSE with a projection", tokens, nlp=True)
class Projected(SimCSE):
    def __init__(self) -> None:
        super().__init__()
        self.emb_reduce_linear = nn.Linear(16, 8)

    def forward(self, ids):
        return self.emb_reduce_linear(super().forward(ids))


@add("image and text", both, nlp=True)
class ImageText(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.image = resnet()
        self.text = bert()
        self.fusion = nn.Linear(528, 8)
        self.out = nn.Linear(8, 2)

    def forward(self, ids, pixels):
        x = paddle.concat([self.image(pixels).flatten(1), self.text(ids)[1]], axis=-1)
        return self.out(self.fusion(x))


@add("pretrained encoder, new decoder", pair, nlp=True)
class NewDecoder(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = ernie()
        self.embed = nn.Embedding(99, 16)
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 2, 24), 2)
        self.proj = nn.Linear(16, 99)

    def forward(self, source, target):
        return self.proj(self.decoder(self.embed(target), self.encoder(source)[0]))


@add("wrapper around a task class", tokens, nlp=True)
class Wrapper(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.model = nlp().BertForSequenceClassification(nlp().BertConfig(**SIZES))

    def forward(self, ids):
        return self.model(ids)


@add("LoRA on a classifier", tokens, nlp=True)
def lora() -> nn.Layer:
    peft = importlib.import_module("paddlenlp.peft")
    config = peft.LoRAConfig(
        target_modules=[".*q_proj.*"], r=2, trainable_modules=[".*classifier.*"]
    )
    return peft.LoRAModel(nlp().BertForSequenceClassification(nlp().BertConfig(**SIZES)), config)


class SoftTemplate(nn.Layer):
    """Soft prompts, with the ``named_parameters()`` of PaddleNLP's: no arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.soft_embeddings = nn.Embedding(4, 16)

    def named_parameters(self):
        return list(self.soft_embeddings.named_parameters())

    def parameters(self):
        return [one for _, one in self.named_parameters()]


@add("prompt model with soft tokens", tokens, nlp=True)
class Prompt(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.plm = nlp().BertForMaskedLM(nlp().BertConfig(**SIZES))
        self.template = SoftTemplate()

    def forward(self, ids):
        soft = self.template.soft_embeddings(paddle.arange(4)).mean()
        return self.plm(ids) + soft


@add("two task classes beside each other", pair, nlp=True)
class TwoTasks(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.first = Wrapper().model
        self.second = Wrapper().model

    def forward(self, one, two):
        return self.first(one), self.second(two)


# ---------------------------------------------------------------- around an image model


@add("Sequential(resnet18, Linear)", image)
def sequential() -> nn.Layer:
    return nn.Sequential(resnet(), nn.Flatten(), nn.Linear(512, 3))


@add("resnet18 with a new fc", image)
def new_fc() -> nn.Layer:
    network = models.resnet18(num_classes=10)
    network.fc = nn.Sequential(nn.Linear(512, 16), nn.ReLU(), nn.Linear(16, 3))
    return network


@add("vgg11 with a new last layer", image)
def new_last() -> nn.Layer:
    network = models.vgg11(num_classes=2)
    network.classifier[6] = nn.Linear(4096, 3)
    return network


@add("vgg11 with a classifier of one's own", image)
def new_classifier() -> nn.Layer:
    network = models.vgg11(num_classes=0)
    network.num_classes = 3
    network.classifier = nn.Sequential(nn.Linear(25088, 16), nn.ReLU(), nn.Linear(16, 3))
    return network


@add("three layers on a resnet18", image)
class ThreeOnTop(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.model = resnet()
        self.fc1 = nn.Linear(512, 8)
        self.bn = nn.BatchNorm1D(8)
        self.fc2 = nn.Linear(8, 2)

    def forward(self, x):
        return self.fc2(self.bn(self.fc1(self.model(x).flatten(1))))


@add("features, projector, predictor", image)
class Projector(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.features = models.mobilenet_v2(num_classes=0)
        self.projector = nn.Linear(1280, 8)
        self.predictor = nn.Linear(8, 8)

    def forward(self, x):
        return self.predictor(self.projector(self.features(x).flatten(1)))


@add("backbone, neck, head", image)
class Detector(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = resnet(with_pool=False)
        self.neck = nn.Sequential(nn.Conv2D(512, 16, 1), nn.BatchNorm2D(16))
        self.head = nn.Conv2D(16, 5, 1)

    def forward(self, x):
        return self.head(self.neck(self.backbone(x)))


@add("detector with an fpn", image)
class FpnDetector(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.fpn = nn.LayerList([nn.Conv2D(512, 16, 1), nn.Conv2D(512, 16, 1)])
        self.resnet = resnet(with_pool=False)
        self.rpn_head = nn.Conv2D(16, 5, 1)
        self.bbox = nn.Sequential(nn.Conv2D(16, 5, 1), nn.Conv2D(5, 5, 1))

    def forward(self, x):
        x = self.resnet(x)
        return self.rpn_head(self.fpn[0](x)), self.bbox(self.fpn[1](x))


@add("CRNN with an LSTM", image)
class CRNN(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.cnn = nn.Sequential(
            nn.Conv2D(3, 8, 3, padding=1),
            nn.BatchNorm2D(8),
            nn.MaxPool2D(2),
            nn.Conv2D(8, 8, 3, padding=1),
            nn.BatchNorm2D(8),
        )
        self.rnn = nn.LSTM(8, 8, num_layers=2, direction="bidirect")
        self.fc = nn.Linear(16, 5)

    def forward(self, x):
        return self.fc(self.rnn(self.cnn(x).mean(axis=2).transpose([0, 2, 1]))[0])


@add("CRNN on a mobilenet", image)
class PretrainedCRNN(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = models.mobilenet_v3_small(num_classes=0, with_pool=False)
        self.neck = nn.LSTM(576, 8, direction="bidirect")
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.neck(self.backbone(x).mean(axis=2).transpose([0, 2, 1]))[0])


@add("UNet with a resnet encoder", image)
class ResnetUNet(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = resnet(with_pool=False)
        self.decoder = nn.LayerList([nn.Conv2D(512, 16, 3, padding=1), nn.Conv2D(16, 8, 3)])
        self.segment = nn.Conv2D(8, 2, 1)

    def forward(self, x):
        x = self.encoder(x)
        for layer in self.decoder:
            x = layer(nn.functional.interpolate(x, scale_factor=4))
        return self.segment(x)


def step(inside: int, outside: int) -> nn.Layer:
    return nn.Sequential(nn.Conv2D(inside, outside, 3, padding=1), nn.BatchNorm2D(outside))


@add("UNet, mid defined last", image)
class UNet(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2D(3, 8, 1)
        self.down_blocks = nn.LayerList([step(8, 8), step(8, 8)])
        self.up_blocks = nn.LayerList([step(8, 8), step(8, 8)])
        self.mid_block = nn.LayerList([step(8, 8)])
        self.conv_out = nn.Conv2D(8, 2, 1)

    def forward(self, x):
        x = self.conv_in(x)
        for layer in (*self.down_blocks, *self.mid_block, *self.up_blocks):
            x = layer(x)
        return self.conv_out(x)


@add("two resnets and a classifier", lambda: image() + image())
class TwoImages(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.left = resnet()
        self.right = resnet()
        self.linear = nn.Linear(1024, 2)

    def forward(self, one, two):
        both = [self.left(one).flatten(1), self.right(two).flatten(1)]
        return self.linear(paddle.concat(both, axis=-1))


# ---------------------------------------------------------------- written whole


@add("vision transformer in timm's style", image)
class VisionTransformer(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.cls_token = self.create_parameter([1, 1, 8])
        self.pos_embed = self.create_parameter([1, 65, 8])
        self.patch_embed = nn.Conv2D(3, 8, 8, 8)
        self.norm = nn.LayerNorm(8)
        self.blocks = nn.LayerList([nn.TransformerEncoderLayer(8, 2, 16) for _ in range(3)])
        self.fc_norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.patch_embed(x).flatten(2).transpose([0, 2, 1])
        x = paddle.concat([self.cls_token.expand([2, 1, 8]), x], axis=1) + self.pos_embed
        x = self.norm(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.fc_norm(x[:, 0]))


class SwinStage(nn.Layer):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.blocks = nn.LayerList([nn.TransformerEncoderLayer(8, 2, 16) for _ in range(depth)])
        self.downsample = nn.Linear(8, 8)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.downsample(x)


@add("stages of blocks", vector)
class Swin(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Linear(8, 8)
        self.layers = nn.LayerList([SwinStage(2), SwinStage(2), SwinStage(3)])
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.patch_embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(axis=1))


@add("ConvNeXt, downsampling and stages in two lists", image)
class ConvNeXt(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        widths = [3, 4, 8, 8, 8]
        self.downsample_layers = nn.LayerList(
            [nn.Sequential(nn.Conv2D(a, b, 2, 2)) for a, b in itertools.pairwise(widths)]
        )
        self.stages = nn.LayerList([nn.Sequential(step(b, b), step(b, b)) for b in widths[1:]])
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        for down, stage in zip(self.downsample_layers, self.stages):
            x = stage(down(x))
        return self.head(self.norm(x.mean(axis=[2, 3])))


@add("SegFormer, numbered embeddings, then numbered blocks", image)
class SegFormer(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        for i in range(1, 4):
            self.add_sublayer(f"patch_embed{i}", step(3 if i == 1 else 8, 8))
        for i in range(1, 4):
            self.add_sublayer(f"block{i}", nn.LayerList([step(8, 8), step(8, 8)]))
            self.add_sublayer(f"norm{i}", nn.BatchNorm2D(8))
        self.head = nn.Conv2D(8, 2, 1)

    def forward(self, x):
        for i in range(1, 4):
            x = getattr(self, f"patch_embed{i}")(x)
            for block in getattr(self, f"block{i}"):
                x = block(x)
            x = getattr(self, f"norm{i}")(x)
        return self.head(x)


@add("convolutions and norms in two lists", lambda: (paddle.rand([4, 8]),))
class GNN(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.LayerList([nn.Linear(8, 8) for _ in range(3)])
        self.norms = nn.LayerList([nn.BatchNorm1D(8) for _ in range(3)])
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        for conv, norm in zip(self.convs, self.norms):
            x = F.relu(norm(conv(x)))
        return self.head(x)


@add("attentions, norms and feed-forwards in lists", tokens)
class XLMLike(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(99, 8)
        self.attentions = nn.LayerList([nn.MultiHeadAttention(8, 2) for _ in range(3)])
        self.layer_norm1 = nn.LayerList([nn.LayerNorm(8) for _ in range(3)])
        self.ffns = nn.LayerList([nn.Sequential(nn.Linear(8, 8), nn.GELU()) for _ in range(3)])
        self.layer_norm2 = nn.LayerList([nn.LayerNorm(8) for _ in range(3)])
        self.pred = nn.Linear(8, 99)

    def forward(self, ids):
        x = self.embed(ids)
        for one in zip(self.attentions, self.layer_norm1, self.ffns, self.layer_norm2):
            attention, norm, ffn, last = one
            x = last(ffn(norm(attention(x))))
        return self.pred(x)


@add("embeddings defined after the blocks", tokens)
class EmbeddingsLast(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.LayerList([nn.Linear(8, 8) for _ in range(3)])
        self.norm = nn.LayerNorm(8)
        self.emb = nn.Embedding(99, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, ids):
        x = self.emb(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


@add("transformer with an encoder and a decoder", pair)
class Seq2Seq(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.decoder_embed = nn.Embedding(99, 8)
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16), 2)
        self.encoder_embed = nn.Embedding(99, 8)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2)
        self.generator = nn.Linear(8, 99)

    def forward(self, source, target):
        memory = self.encoder(self.encoder_embed(source))
        return self.generator(self.decoder(self.decoder_embed(target), memory))


@add("nn.Transformer alone", lambda: vector() + vector())
def transformer() -> nn.Layer:
    return nn.Transformer(8, 2, 2, 2, 16)


@add("plain CNN with two linear layers", image)
class PlainCNN(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2D(3, 4, 3)
        self.conv2 = nn.Conv2D(4, 4, 3)
        self.fc1 = nn.Linear(4, 8)
        self.fc2 = nn.Linear(8, 2)

    def forward(self, x):
        return self.fc2(self.fc1(self.conv2(self.conv1(x)).mean(axis=[2, 3])))


@add("Embedding, LSTM, Linear", tokens)
class Tagger(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(99, 8)
        self.lstm = nn.LSTM(8, 8, num_layers=2)
        self.linear = nn.Linear(8, 2)

    def forward(self, ids):
        return self.linear(self.lstm(self.embedding(ids))[0])


@add("a text network of a free name and two new layers", tokens)
class FreeName(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Embedding(99, 8), nn.Linear(8, 8), nn.Linear(8, 8))
        self.proj = nn.Linear(8, 8)
        self.task = nn.Linear(8, 2)

    def forward(self, ids):
        return self.task(self.proj(self.net(ids)))


class DottedBlock(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self._expand_conv = step(8, 8)
        self._se_reduce = nn.Sequential(nn.Conv2D(8, 8, 1))
        self._se_expand = nn.Sequential(nn.Conv2D(8, 8, 1))

    def forward(self, x):
        return self._expand_conv(x) + self._se_expand(self._se_reduce(x))


@add("EfficientNet with dots in the names of blocks", image)
class EfficientNet(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = step(3, 8)
        for i in range(3):
            self.add_sublayer(f"_blocks.{i}.", DottedBlock())
        self._conv = step(8, 8)
        self._fc = nn.Linear(8, 2)

    def forward(self, x):
        x = self._conv_stem(x)
        for i in range(3):
            x = self._sub_layers[f"_blocks.{i}."](x)
        return self._fc(self._conv(x).mean(axis=[2, 3]))


@add("EfficientNet without its fc", image)
class EfficientNetTrunk(EfficientNet):
    def __init__(self) -> None:
        super().__init__()
        del self._fc

    def forward(self, x):
        x = self._conv_stem(x)
        for i in range(3):
            x = self._sub_layers[f"_blocks.{i}."](x)
        return x


@add("generator and discriminator", lambda: (paddle.rand([2, 4]),))
class GAN(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        self.discriminator = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))

    def forward(self, x):
        return self.discriminator(self.generator(x))


@add("blocks with an input layer that is called fc", vector)
class FcFirst(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.blocks = nn.LayerList([nn.TransformerEncoderLayer(8, 2, 16) for _ in range(2)])

    def forward(self, x):
        x = self.fc(x)
        for block in self.blocks:
            x = block(x)
        return x


@add("blocks without a head", vector)
class NoHead(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 8)
        self.blocks = nn.LayerList([nn.TransformerEncoderLayer(8, 2, 16) for _ in range(2)])
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


@add("one that says its stages itself", image)
class Says(PlainCNN):
    freeze_stages = {"new": ["fc1", "fc2"], "pretrained": "*"}  # noqa: RUF012
