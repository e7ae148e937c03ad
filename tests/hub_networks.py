"""Networks of transformers, timm and torchvision in tiny configurations, and two of one's own; nothing is downloaded.

Each is built in two depths, for a teacher and a student whose sections correspond.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lit_fast as lf

VOCABULARY, CLASSES, LENGTH = 64, 5, 8


@dataclass(frozen=True)
class Network:
    """An architecture in two sections.

    Attributes:
        name, library: as in the table of docs/own-model.md.
        build: the network, with so many blocks in each of the sections that differ between teacher and student.
        cut: the arguments of `lit_fast.split` beside the model.
        inputs: a batch without labels.
        how: "traced" or "recorded": what "auto" makes of it.
        targets: those of `lit_fast.LITStep`.
        labels: for a batch of logits of that shape; None: the targets make their own.
    """

    name: str
    library: str
    build: Callable[[int], nn.Module]
    cut: Mapping[str, Any]
    inputs: Callable[[], Any]
    how: str
    targets: str = "classification"

    def split(self, blocks: int, dtype: torch.dtype = torch.float32, dropout: bool = False) -> lf.SplitModel:
        if self.library in ("timm", "torchvision"):
            require_vision()
        model = self.build(blocks).to(dtype)
        return lf.split(model if dropout else without_dropout(model), **self.cut)

    def batch(self, dtype: torch.dtype = torch.float32) -> Any:
        generator_state = torch.get_rng_state()
        torch.manual_seed(7)
        inputs = self.inputs()
        torch.set_rng_state(generator_state)
        if isinstance(inputs, dict):
            return {key: _floats_as(value, dtype) for key, value in inputs.items()}
        return tuple(_floats_as(x, dtype) for x in inputs) if isinstance(inputs, tuple) else _floats_as(inputs, dtype)

    def labels(self, logits: Tensor) -> Tensor | None:
        if self.targets == "causal_lm":
            return None
        classes = logits.shape[1 if self.targets == "dense" else -1]
        shape = (logits.shape[0], *logits.shape[2:]) if self.targets == "dense" else logits.shape[:-1]
        return torch.randint(classes, shape, generator=torch.Generator().manual_seed(8))


def _floats_as(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if value.is_floating_point() else value


def without_dropout(model: nn.Module) -> nn.Module:
    """The same network with every probability of dropping something at zero, wherever its authors keep it."""
    for module in model.modules():
        drops = "Drop" in type(module).__name__ or "StochasticDepth" in type(module).__name__
        for name, value in vars(module).items():
            if isinstance(value, float) and ("drop" in name or (drops and name == "p")):
                setattr(module, name, 0.0)
    return model


# -- timm and torchvision, which are not always there ----------------------------------------------------------------


def require_vision() -> None:
    """Import timm and torchvision, or skip the test.

    LIT_FAST_VISION names a folder that has them. torchvision's wheel on PyPI is built for CUDA: beside a torch without
    it, describing its compiled operators fails, which no network needs.
    """
    place = os.environ.get("LIT_FAST_VISION")
    added = bool(place) and place not in sys.path
    if added:
        sys.path.append(place)
    register = torch.library.register_fake

    def register_fake(op: Any, *args: Any, **kwargs: Any) -> Any:
        described = str(op).startswith("torchvision::")
        return (lambda function: function) if described else register(op, *args, **kwargs)

    torch.library.register_fake = register_fake
    try:
        for name in ("torchvision", "timm"):
            importlib.import_module(name)
    except Exception as error:
        if added:  # half a torchvision would be found by others
            sys.path.remove(place)
        pytest.skip(f"timm and torchvision are needed (pip install, or LIT_FAST_VISION=folder): {error}")
    finally:
        torch.library.register_fake = register


# -- batches -----------------------------------------------------------------------------------------------------------


def texts() -> dict[str, Tensor]:
    """Three texts, two of them padded."""
    mask = torch.ones(3, LENGTH, dtype=torch.long)
    mask[1, 5:] = mask[2, 3:] = 0
    return {"input_ids": torch.randint(5, VOCABULARY, (3, LENGTH)), "attention_mask": mask}


def text_pairs() -> dict[str, Tensor]:
    """Padded texts and what is to be made of them."""
    return {**texts(), "decoder_input_ids": torch.randint(5, VOCABULARY, (3, 6))}


def sound() -> dict[str, Tensor]:
    return {"input_features": torch.randn(2, 8, 20), "decoder_input_ids": torch.randint(5, VOCABULARY, (2, 6))}


def pixel_values() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(2, 3, 32, 32)}


def images(size: int = 32) -> Tensor:
    return torch.randn(4, 3, size, size)


# -- transformers ------------------------------------------------------------------------------------------------------


def transformers(
    model: str, config: str, depth: str = "num_hidden_layers", **options: Any
) -> Callable[[int], nn.Module]:
    """A network of that class whose depth is ``2 * blocks``."""

    def build(blocks: int) -> nn.Module:
        import transformers

        return getattr(transformers, model)(getattr(transformers, config)(**options, **{depth: 2 * blocks}))

    return build


SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
TOKENS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GROUPED = {**SIZES, **TOKENS, "num_key_value_heads": 1}
LABELS = {"num_labels": CLASSES}
BERT = {**SIZES, **LABELS, "vocab_size": VOCABULARY, "max_position_embeddings": 32}
IMAGES = {**SIZES, **LABELS, "image_size": 32, "patch_size": 8}
T5 = {**TOKENS, "d_model": 16, "d_ff": 32, "num_heads": 2, "d_kv": 8}
BART = {
    **TOKENS,
    "d_model": 16,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "max_position_embeddings": 32,
}
BART |= {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "decoder_start_token_id": 1, "forced_eos_token_id": None}
WHISPER = {**BART, "max_source_positions": 10, "max_target_positions": 10, "num_mel_bins": 8}
WHISPER.pop("max_position_embeddings")


def segformer(blocks: int) -> nn.Module:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    return SegformerForSemanticSegmentation(
        SegformerConfig(
            num_labels=CLASSES,
            num_encoder_blocks=2,
            depths=[2 * blocks, 1],
            sr_ratios=[2, 1],
            hidden_sizes=[16, 16],
            patch_sizes=[7, 3],
            strides=[4, 2],
            num_attention_heads=[1, 2],
            mlp_ratios=[2, 2],
            decoder_hidden_size=16,
        )
    )


def swin(blocks: int) -> nn.Module:
    from transformers import SwinConfig, SwinForImageClassification

    sizes = {"image_size": 32, "patch_size": 4, "embed_dim": 16, "window_size": 4}
    return SwinForImageClassification(SwinConfig(**sizes, depths=[blocks, blocks], num_heads=[2, 2], **LABELS))


def convnext(blocks: int) -> nn.Module:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    return ConvNextForImageClassification(
        ConvNextConfig(num_stages=2, depths=[blocks, blocks], hidden_sizes=[16, 32], **LABELS)
    )


def hub(
    name: str, model: str, config: str, blocks: str, inputs: Any, targets: str = "classification", **more: Any
) -> Network:
    build = transformers(model, config, **more)
    return Network(name, "transformers", build, {"blocks": blocks, "sections": 2}, inputs, "recorded", targets)


def causal(name: str, blocks: str = "model.layers", family: str | None = None, **more: Any) -> Network:
    family = family or name
    return hub(name, f"{family}ForCausalLM", f"{family}Config", blocks, texts, "causal_lm", **more)


def classifier(name: str, family: str, blocks: str, **more: Any) -> Network:
    return hub(name, f"{family}ForSequenceClassification", f"{family}Config", blocks, texts, **more)


def translator(name: str, family: str, blocks: str, inputs: Any = text_pairs, **more: Any) -> Network:
    return hub(name, f"{family}ForConditionalGeneration", f"{family}Config", blocks, inputs, "tokens", **more)


def vision(name: str, family: str, blocks: str, **more: Any) -> Network:
    return hub(name, f"{family}ForImageClassification", f"{family}Config", blocks, pixel_values, **more)


HUGGING_FACE = [
    hub(
        "GPT-2",
        "GPT2LMHeadModel",
        "GPT2Config",
        "transformer.h",
        texts,
        "causal_lm",
        depth="n_layer",
        n_embd=16,
        n_head=2,
        **TOKENS,
    ),
    causal("Llama", **GROUPED),
    causal("Qwen3", head_dim=8, **GROUPED),
    hub("Gemma 3", "Gemma3ForCausalLM", "Gemma3TextConfig", "model.layers", texts, "causal_lm", head_dim=8, **GROUPED),
    causal("Mistral", **GROUPED),
    causal("Phi", **GROUPED),
    causal("GPT-NeoX", "gpt_neox.layers", "GPTNeoX", **SIZES, **TOKENS),
    classifier("BERT", "Bert", "bert.encoder.layer", **BERT),
    classifier("RoBERTa", "Roberta", "roberta.encoder.layer", **BERT),
    classifier("ELECTRA", "Electra", "electra.encoder.layer", embedding_size=8, **BERT),
    classifier(
        "DistilBERT",
        "DistilBert",
        "distilbert.transformer.layer",
        depth="n_layers",
        dim=16,
        hidden_dim=32,
        n_heads=2,
        vocab_size=VOCABULARY,
        **LABELS,
    ),
    classifier("DeBERTa-v2", "DebertaV2", "deberta.encoder.layer", **BERT),
    classifier(
        "ModernBERT",
        "ModernBert",
        "model.layers",
        **{**BERT, **TOKENS, "local_attention": 4, "cls_token_id": 1, "sep_token_id": 2},
    ),
    translator("T5 encoder", "T5", "encoder.block", depth="num_layers", num_decoder_layers=2, **T5),
    translator("T5 decoder", "T5", "decoder.block", depth="num_decoder_layers", num_layers=2, **T5),
    translator("BART encoder", "Bart", "model.encoder.layers", depth="encoder_layers", decoder_layers=2, **BART),
    translator("BART decoder", "Bart", "model.decoder.layers", depth="decoder_layers", encoder_layers=2, **BART),
    translator(
        "Whisper encoder", "Whisper", "model.encoder.layers", sound, depth="encoder_layers", decoder_layers=2, **WHISPER
    ),
    vision("ViT", "ViT", "vit.layers", **IMAGES),
    vision("DeiT", "DeiT", "deit.layers", **IMAGES),
    vision("DINOv2", "Dinov2", "dinov2.encoder.layer", **{**IMAGES, "mlp_ratio": 2}),
    Network("Swin", "transformers", swin, {"blocks": "swin.encoder.layers"}, pixel_values, "recorded"),
    Network("ConvNeXt", "transformers", convnext, {"blocks": "convnext.encoder.stages"}, pixel_values, "traced"),
    Network(
        "SegFormer",
        "transformers",
        segformer,
        {"blocks": "segformer.stages.0.blocks", "sections": 2},
        pixel_values,
        "recorded",
        "dense",
    ),
]


# -- timm --------------------------------------------------------------------------------------------------------------


def created(model: str, options: Callable[[int], dict[str, Any]]) -> Callable[[int], nn.Module]:
    """One of timm's models by name, with options for so many blocks."""

    def build(blocks: int) -> nn.Module:
        import timm

        return timm.create_model(model, num_classes=CLASSES, **options(blocks))

    return build


def patches(blocks: int) -> dict[str, Any]:
    return {"img_size": 32, "patch_size": 8, "embed_dim": 16, "num_heads": 2, "depth": 2 * blocks}


def windows(blocks: int) -> dict[str, Any]:
    depths = {"embed_dim": 16, "depths": (blocks, blocks), "num_heads": (2, 2)}
    return {"img_size": 32, "patch_size": 4, "window_size": 4, **depths}


def mixer(blocks: int) -> nn.Module:
    from timm.models.mlp_mixer import MlpMixer

    return MlpMixer(CLASSES, img_size=32, patch_size=8, num_blocks=2 * blocks, embed_dim=16)


def tm_convnext(blocks: int) -> nn.Module:
    from timm.models.convnext import ConvNeXt

    return ConvNeXt(num_classes=CLASSES, depths=(blocks,) * 4, dims=(8, 8, 16, 16))


def tm_efficientnet(blocks: int) -> nn.Module:
    from timm.models.efficientnet import EfficientNet, decode_arch_def

    stages = [[f"ds_r{blocks}_k3_s1_e1_c8_se0.25"], [f"ir_r{blocks}_k3_s2_e2_c16_se0.25"]]
    return EfficientNet(decode_arch_def(stages), CLASSES, num_features=32, stem_size=8)


def regnet(blocks: int) -> nn.Module:
    from timm.models.regnet import RegNet, RegNetCfg

    return RegNet(
        RegNetCfg(depth=8 * blocks, w0=8, wa=8 / blocks, wm=2.0, group_size=8, stem_width=8), num_classes=CLASSES
    )


def mobilevit(blocks: int) -> nn.Module:
    from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg

    def bottlenecks(count: int) -> ByoBlockCfg:
        return ByoBlockCfg(
            "bottle", d=count, c=16, s=2, gs=1, br=2.0, block_kwargs={"bottle_in": True, "linear_out": True}
        )

    attention = {"transformer_dim": 16, "transformer_depth": blocks, "patch_size": 2, "num_heads": 2}
    second = (bottlenecks(1), ByoBlockCfg("mobilevit", d=1, c=16, s=1, block_kwargs=attention))
    sizes = {"stem_chs": 8, "stem_type": "3x3", "stem_pool": "", "act_layer": "silu"}
    return ByobNet(ByoModelCfg(blocks=(bottlenecks(blocks), second), num_features=16, **sizes), CLASSES)


def nfnet(blocks: int) -> nn.Module:
    from timm.models.nfnet import NfCfg, NormFreeNet

    sizes = {"depths": (blocks, blocks), "channels": (16, 16), "stem_chs": 8, "group_size": 8, "num_features": 32}
    return NormFreeNet(NfCfg(**sizes), CLASSES)


def picture(
    name: str, library: str, build: Callable[[int], nn.Module], cut: str | list[str], stem: str | None = None
) -> Network:
    """A network of images that can be traced, cut in the middle of a stack or at modules."""
    arguments = {"blocks": cut, "sections": 2} if isinstance(cut, str) else {"at": cut, "stem": stem}
    return Network(name, library, build, arguments, images, "traced")


TIMM = [
    picture("ViT", "timm", created("vit_tiny_patch16_224", patches), "blocks"),
    picture("DeiT", "timm", created("deit_tiny_distilled_patch16_224", patches), "blocks"),
    picture("Swin", "timm", created("swin_tiny_patch4_window7_224", windows), "layers"),
    picture("ConvNeXt", "timm", tm_convnext, "stages"),
    picture("EfficientNet", "timm", tm_efficientnet, "blocks"),
    picture("RegNet", "timm", regnet, ["s1", "s2", "s3", "s4"]),
    picture("MLP-Mixer", "timm", mixer, "blocks"),
    picture("MobileViT", "timm", mobilevit, "stages"),
    picture("NFNet", "timm", nfnet, "stages"),
]


# -- torchvision -------------------------------------------------------------------------------------------------------


def resnet(blocks: int) -> nn.Module:
    from torchvision.models.resnet import BasicBlock, ResNet

    class Narrow(ResNet):
        def _make_layer(self, block: Any, planes: int, *args: Any, **options: Any) -> nn.Module:
            return super()._make_layer(block, planes // 8, *args, **options)

    model = Narrow(BasicBlock, [blocks] * 4)
    model.fc = nn.Linear(512 // 8, CLASSES)
    return model


def densenet(blocks: int) -> nn.Module:
    from torchvision.models import DenseNet

    growth, inner = 8 // blocks, 4 * blocks  # as wide in either depth
    return DenseNet(growth, (blocks, blocks), num_init_features=8, bn_size=inner, num_classes=CLASSES)


def vgg(blocks: int) -> nn.Module:
    from torchvision.models.vgg import VGG, make_layers

    with torch.device("meta"):  # the classifier that it begins with has 120 million parameters
        model = VGG(nn.Identity(), init_weights=False)
    model.features = make_layers([8] * blocks + ["M"] + [16] * blocks + ["M"], batch_norm=True)
    model.avgpool, model.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(16, CLASSES)
    return model


def mobilenet(blocks: int) -> nn.Module:
    from torchvision.models import MobileNetV2

    return MobileNetV2(CLASSES, inverted_residual_setting=[[1, 8, blocks, 1], [2, 16, blocks, 2]], round_nearest=4)


def efficientnet(blocks: int) -> nn.Module:
    from torchvision.models.efficientnet import EfficientNet, MBConvConfig

    stages = [MBConvConfig(1, 3, 1, 8, 8, blocks), MBConvConfig(2, 3, 2, 8, 16, blocks)]
    return EfficientNet(stages, dropout=0.2, num_classes=CLASSES)


def tv_regnet(blocks: int) -> nn.Module:
    from torchvision.models.regnet import BlockParams, RegNet

    widths = {"widths": [16, 16], "group_widths": [8, 8], "bottleneck_multipliers": [1.0, 1.0], "strides": [2, 2]}
    return RegNet(BlockParams(depths=[blocks, blocks], **widths), CLASSES)


def tv_convnext(blocks: int) -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    return ConvNeXt([CNBlockConfig(8, 16, blocks), CNBlockConfig(16, None, blocks)], num_classes=CLASSES)


def tv_vit(blocks: int) -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(32, 8, 2 * blocks, 2, hidden_dim=16, mlp_dim=32, num_classes=CLASSES)


def tv_swin(blocks: int) -> nn.Module:
    from torchvision.models import SwinTransformer

    return SwinTransformer([4, 4], 16, [blocks, blocks], [2, 2], [4, 4], num_classes=CLASSES)


STAGES = [f"layer{i}" for i in (1, 2, 3, 4)]

TORCHVISION = [
    picture("ResNet", "torchvision", resnet, STAGES),
    picture("DenseNet", "torchvision", densenet, ["features.transition1", "features.denseblock2"], "features.pool0"),
    picture("VGG", "torchvision", vgg, "features"),
    picture("MobileNetV2", "torchvision", mobilenet, "features"),
    picture("EfficientNet", "torchvision", efficientnet, ["features.1", "features.2"]),
    picture("RegNet", "torchvision", tv_regnet, ["trunk_output.block1", "trunk_output.block2"]),
    picture("ConvNeXt", "torchvision", tv_convnext, ["features.1", "features.3"]),
    picture("ViT", "torchvision", tv_vit, "encoder.layers"),
    picture("Swin", "torchvision", tv_swin, ["features.1", "features.3"]),
]


# -- of one's own ------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """A residual layer that is told how much of a condition to add."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear, self.drop = nn.LayerNorm(16), nn.Linear(16, 16), nn.Dropout(0.1)

    def forward(self, hidden: Tensor, condition: Tensor) -> Tensor:
        return hidden + self.drop(self.linear(self.norm(hidden)).tanh() + condition)


class Looped(nn.Module):
    """Layers in an nn.ModuleList, looped over by code that looks at values, as no tracer can follow it."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.layers = nn.ModuleList(Block() for _ in range(2 * blocks))
        self.last = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.embed(x)
        condition = hidden.mean(1, keepdim=True) if x.amax() > 0 else torch.zeros_like(hidden)
        for number, layer in enumerate(self.layers):
            hidden = layer(hidden, condition / (number + 1))
        return self.last(hidden.mean(1))


class TwoInputs(Looped):
    """The same with a condition of its own, and logits in a dict."""

    def forward(self, x: Tensor, condition: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        hidden = self.embed(x)
        for layer in self.layers:
            hidden = layer(hidden, condition=condition)
        return {"features": hidden, "logits": self.last(hidden.mean(1))}


def points() -> Tensor:
    return torch.randn(4, 7, 6)


def points_and_condition() -> tuple[Tensor, Tensor]:
    return points(), torch.randn(4, 1, 16)


LAYERS = {"blocks": "layers", "sections": 2}
OWN = [
    Network("a Python loop", "own", Looped, LAYERS, points, "recorded"),
    Network("two inputs", "own", TwoInputs, LAYERS, points_and_condition, "recorded"),
]

NETWORKS = [*HUGGING_FACE, *TIMM, *TORCHVISION, *OWN]
