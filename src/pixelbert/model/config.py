"""The settings of the network: one dataclass-like config, each field with its default and the reason for it."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import BertConfig, PreTrainedConfig

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_CHOICES = {
    "visual_projection": ("linear", "conv3x3"),
    "visual_position": ("none", "sine2d", "learned2d"),
    "backbone_norm": ("frozen", "train", "sync"),
    "backbone_output": ("stage", "head"),
    "image_channels": ("RGB", "BGR"),
}


class PixelBertConfig(PreTrainedConfig):
    """Everything that shapes a Pixel-BERT; training choices live in the recipe.

    Args:
        text_config: settings of the BERT encoder (a `BertConfig` or its dict); default `bert-base-uncased`.
        backbone: a timm CNN by name, or `resnext152_32x8d`.
        backbone_output: `stage` = timm's last `features_only` map; `head` = timm's `forward_features`, which in the
            EfficientNets includes the last 1x1 convolution (320 -> 1280 channels).
        backbone_norm: batch norm `frozen` (statistics and affine; small batches of large images), `train`, or `sync`.
        frozen_stages: -1 trains all; 0 freezes the stem, 1 the stem and the first stage (paper-size default), and so
            on through timm's `feature_info`; a number past the last stage freezes the whole CNN.
        visual_pool: the paper's 2 x 2 max pool behind the CNN (stride 64); the small sizes keep stride 32.
        visual_projection: 1 x 1 (`linear`, the paper) or a 3 x 3 convolution.
        visual_layer_norm: LayerNorm on pixel vectors; Eq. (5) has none.
        visual_position: `none` (the paper), fixed sine or learned row + column vectors.
        num_sampled_pixels: pixels kept per text copy while pretraining; 0 keeps all.
        contrastive_size: width of the pooled vectors; 0 = no contrastive head (the paper).
        match_fitted: the match's log-odds are fitted after training, with the similarity of the pooled vectors where
            there are any (`match_fit`; beyond the paper).
        match_words: a fitted match also asks how well each word is found among the pixels (`WordPixels`; beyond the
            paper).
        head_dropout: in the heads of the downstream tasks.
        num_images, image_type: pictures a statement is about, and whether each place has a vector of its own (NLVR2;
            the paper gives both pictures the same s_v).
        image_mean, image_std, image_channels: of the CNN's own training, for pixel values scaled to 0..1.
    """

    model_type = "pixelbert"
    sub_configs: ClassVar[dict[str, Any]] = {"text_config": BertConfig}

    def __init__(
        self,
        text_config: BertConfig | dict[str, Any] | None = None,
        backbone: str = "resnet50",
        backbone_output: str = "stage",
        backbone_norm: str = "frozen",
        frozen_stages: int = 1,
        visual_pool: bool = True,
        visual_projection: str = "linear",
        visual_layer_norm: bool = False,
        visual_position: str = "none",
        visual_dropout: float = 0.0,
        visual_channel_dropout: float = 0.0,
        visual_skip: bool = False,
        num_sampled_pixels: int = 100,
        contrastive_size: int = 0,
        match_fitted: bool = False,
        match_words: bool = False,
        head_dropout: float = 0.5,
        num_images: int = 2,
        image_type: bool = False,
        image_mean: tuple[float, ...] | list[float] = IMAGENET_MEAN,
        image_std: tuple[float, ...] | list[float] = IMAGENET_STD,
        image_channels: str = "RGB",
        **kwargs: Any,
    ) -> None:
        encoder: Any = BertConfig() if text_config is None else text_config
        self.text_config = BertConfig(**encoder) if isinstance(encoder, dict) else encoder
        self.backbone = backbone
        self.backbone_output = backbone_output
        self.backbone_norm = backbone_norm
        self.frozen_stages = frozen_stages
        self.visual_pool = visual_pool
        self.visual_projection = visual_projection
        self.visual_layer_norm = visual_layer_norm
        self.visual_position = visual_position
        self.visual_dropout = visual_dropout
        self.visual_channel_dropout = visual_channel_dropout
        self.visual_skip = visual_skip
        self.num_sampled_pixels = num_sampled_pixels
        self.contrastive_size = contrastive_size
        self.match_fitted = match_fitted
        self.match_words = match_words
        self.head_dropout = head_dropout
        self.num_images = num_images
        self.image_type = image_type
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)
        self.image_channels = image_channels
        self.hidden_size = self.text_config.hidden_size
        self.initializer_range = self.text_config.initializer_range
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is '{getattr(self, name)}', expected one of {', '.join(choices)}")
        kwargs.setdefault("tie_word_embeddings", True)  # transformers ties the masked-word decoder only when told so
        kwargs.pop("hidden_size", None)
        kwargs.pop("initializer_range", None)
        super().__init__(**kwargs)
