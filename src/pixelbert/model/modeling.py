"""Pixel-BERT (Huang et al. 2020), in the order of its equations: words, pixels, one Transformer, the heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import BertModel, PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import ModelOutput
from transformers.models.bert.modeling_bert import BertLayer, BertLMPredictionHead, BertSelfAttention
from transformers.utils.output_capturing import capture_outputs

from pixelbert.model.backbone import VisualBackbone
from pixelbert.model.config import PixelBertConfig
from pixelbert.model.contrastive import INITIAL_LOG_SCALE, ContrastiveHead
from pixelbert.model.encoder import encode
from pixelbert.model.pixels import Grid, PixelEmbedding, mean_over, sample_pixels
from pixelbert.model.precision import in_float32
from pixelbert.model.word_pixels import WordPixels


@dataclass
class PixelBertOutput(ModelOutput):
    """What the Transformer gives.

    last_hidden_state: [T, L + K, d]: L word pieces ([CLS] first), then K pixels; or the first `places` of them.
    attention_mask: bool [T, L + K], False on padding of either kind.
    mean_pixel: [T, d], of the pixels that went in; None without an image.
    hidden_states, attentions: per layer, when asked for.
    """

    last_hidden_state: Tensor | None = None
    attention_mask: Tensor | None = None
    mean_pixel: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class PixelBertPreTrainedModel(PreTrainedModel):
    """Loading, saving and initial weights."""

    config_class = PixelBertConfig
    base_model_prefix = "pixelbert"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _can_record_outputs: ClassVar[dict[str, Any]] = {"hidden_states": BertLayer, "attentions": BertSelfAttention}

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; the weights end where allocated ones lie in memory.

        In a safetensors file they start at any byte, and on some processors matrix products round differently from
        there: the loaded model would not be the saved one to the last bit.
        """
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # with its report, where that is asked for
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.device.type == "cpu" and tensor.data_ptr() % 64:
                tensor.data = tensor.data.clone()
        return loaded

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """BERT's normal(0, 0.02) everywhere but in the CNN, which timm initialises itself."""
        if isinstance(module, VisualBackbone):  # its CNN is marked as initialised when it is built
            for name, value in (("mean", self.config.image_mean), ("std", self.config.image_std)):
                init.copy_(getattr(module, name), torch.tensor(value).view(1, -1, 1, 1))
        elif not getattr(module, "_is_hf_initialized", False):
            super()._init_weights(module)
            if isinstance(module, BertLMPredictionHead):
                init.zeros_(module.bias)
            elif isinstance(module, PixelEmbedding):
                init.normal_(module.type_embedding, std=self.config.initializer_range)
            elif isinstance(module, ContrastiveHead):
                init.constant_(module.log_scale, INITIAL_LOG_SCALE)
            elif isinstance(module, Skip):
                init.zeros_(module.weight)


class PixelBertModel(PixelBertPreTrainedModel):
    """Words and pixels in one Transformer: Eq. (1) to (6)."""

    def __init__(self, config: PixelBertConfig) -> None:
        super().__init__(config)
        self.text = BertModel(config.text_config, add_pooling_layer=False)
        self.visual = VisualBackbone(config)
        self.pixels = PixelEmbedding(config, self.visual.channels)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.text.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text.set_input_embeddings(value)

    def encode_images(self, pixel_values: Tensor, image_sizes: Tensor | None = None) -> Grid:
        """Images -> all their pixels, Eq. (5). See `VisualBackbone.forward` for the arguments."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.visual.is_frozen):
            features, mask = self.visual(pixel_values, image_sizes)
        return self.pixels(features, mask)

    @capture_outputs
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        image_of_text: Tensor | None = None,
        grid: Grid | None = None,
        sampling_seed: Tensor | None = None,
        places: int | None = None,
        **kwargs: Any,
    ) -> PixelBertOutput:
        """Texts with their images; without images, BERT on the text alone.

        Args:
            input_ids: int64 [T, L], `[CLS] words [SEP]` and padding.
            attention_mask: [T, L], 1 on words; None when nothing is padded.
            pixel_values: uint8 [I, 3, H, W] (normalised here) or float (taken as normalised).
            image_sizes: int64 [I, 2], valid height and width of each image; None when nothing is padded.
            image_of_text: int64 [T], which image each text belongs to; None when they go one to one.
            grid: pixels computed before (`encode_images`), instead of `pixel_values`.
            sampling_seed: int64 [T]: sample `config.num_sampled_pixels` pixels per text copy; None keeps all.
            places: only the first so many places are asked for, 1 = [CLS]: the last layer computes no others, and
                hidden states and attentions cannot be asked for.
        """
        words = self.text.embeddings(input_ids)  # Eq. (4)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        mask, mean_pixel = mask.bool(), None
        if grid is None and pixel_values is not None:
            grid = self.encode_images(pixel_values, image_sizes)  # Eq. (5)
        if grid is not None:
            if image_of_text is not None:
                grid = grid.select(image_of_text)
            if sampling_seed is not None:
                grid = sample_pixels(grid, self.config.num_sampled_pixels, sampling_seed)
            mean_pixel = mean_over(grid.pixels, grid.mask)
            words = torch.cat([words, grid.pixels.to(words.dtype)], dim=1)  # Eq. (6)
            mask = torch.cat([mask, grid.mask], dim=1)
        attention = create_bidirectional_mask(self.config.text_config, words, mask)
        hidden = encode(self.text.encoder, words, attention, places)  # Eq. (1) to (3), every layer
        return PixelBertOutput(last_hidden_state=hidden, attention_mask=mask, mean_pixel=mean_pixel)


class PooledVectors:
    """Vectors of images alone and of texts alone, of a model with `pixelbert` and a `contrastive` head."""

    pixelbert: PixelBertModel
    contrastive: ContrastiveHead | None

    def image_vectors(self, grid: Grid) -> Tensor:
        """Pooled image vectors [I, contrastive_size]; needs `config.contrastive_size`."""
        assert self.contrastive is not None
        return self.contrastive.image_vectors(grid)

    def text_vectors(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Pooled vectors of texts alone [T, contrastive_size]; needs `config.contrastive_size`."""
        assert self.contrastive is not None
        hidden = self.pixelbert(input_ids, attention_mask=attention_mask).last_hidden_state
        return self.contrastive.text_vectors(hidden, attention_mask)


class Skip(nn.Linear):
    """The mean pixel's own scores of hidden words, which are added up (beyond the paper); at first nothing.

    It is what a linear probe of the pixels finds in a few hundred steps and the Transformer in ten times as many. Its
    weights are its own: through the word embeddings, which the decoder of masked words shares, half of it is found.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config.hidden_size, config.vocab_size, bias=False)


class PixelBertForPreTraining(PooledVectors, PixelBertPreTrainedModel):
    """Masked language modelling, Eq. (7), and image-text matching, Eq. (8)."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {
        "mlm_head.decoder.weight": "pixelbert.text.embeddings.word_embeddings.weight",
        "mlm_head.decoder.bias": "mlm_head.bias",
    }

    def __init__(self, config: PixelBertConfig) -> None:
        super().__init__(config)
        self.pixelbert = PixelBertModel(config)
        self.mlm_head = BertLMPredictionHead(config.text_config)
        self.skip = Skip(config.text_config) if config.visual_skip else None
        self.itm_head = nn.Linear(config.hidden_size, 2)  # mismatch, match; on the raw [CLS] vector
        self.contrastive = ContrastiveHead(config) if config.contrastive_size else None
        if config.match_fitted:
            self.register_buffer("match_fit", torch.tensor([1.0, 0.0, 0.0]))  # of [CLS], of the cosine, constant
        self.word_pixels = WordPixels(config) if config.match_fitted and config.match_words else None
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.mlm_head.decoder

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.mlm_head.decoder = new_embeddings
        self.mlm_head.bias = new_embeddings.bias

    def forward(
        self, input_ids: Tensor, labels: Tensor | None = None, itm_labels: Tensor | None = None, **inputs: Any
    ) -> PreTrainingOutput:
        """Scores for masked words and for the match.

        Args:
            input_ids: int64 [T, L] with masked pieces.
            labels: int64 [T, L], the true piece where one was masked, else -100. With labels, `mlm_logits` are
                those of the masked places alone, [masked, vocabulary], in row-major order; without, all [T, L, V].
            itm_labels: int64 [T], 1 for a match. With them `loss` is the sum of both means, for transformers' Trainer;
                our own loop divides by the counts of a whole step instead (tasks/pretraining.py).
            inputs: as in `PixelBertModel.forward`.
        """
        output = self.pixelbert(input_ids, **inputs)
        words, picture = output.last_hidden_state[:, : input_ids.shape[1]], output.mean_pixel
        if picture is not None:
            picture = picture[:, None].expand_as(words)
        if labels is not None:
            hidden = labels != -100
            words, picture = words[hidden], None if picture is None else picture[hidden]
        mlm_logits = self.word_scores(words, picture)
        itm_logits = in_float32(self.itm_head, output.last_hidden_state[:, 0])
        loss = None
        if itm_labels is not None:
            loss = nn.functional.cross_entropy(itm_logits.float(), itm_labels)
            if labels is not None and len(words):
                loss = loss + nn.functional.cross_entropy(mlm_logits.float(), labels[labels != -100])
        return PreTrainingOutput(
            loss=loss,
            mlm_logits=mlm_logits,
            itm_logits=itm_logits,
            last_hidden_state=output.last_hidden_state,
            attention_mask=output.attention_mask,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )

    def word_scores(self, words: Tensor, mean_pixel: Tensor | None = None) -> Tensor:
        """Scores [..., V] of hidden words [..., d], plus their mean pixel's [..., d] with `config.visual_skip`."""
        scores: Tensor = self.mlm_head(words)
        if self.skip is not None and mean_pixel is not None:
            scores = scores + self.skip(mean_pixel)
        return scores

    def picture_words(self, mean_pixel: Tensor, words: Tensor) -> Tensor:
        """Scores [I, W] of the words [W] as mean pixels [I, d] alone tell them, by the skip where there is one."""
        if self.skip is None:
            read, weight = self.mlm_head.transform(mean_pixel), self.mlm_head.decoder.weight
        else:
            read, weight = mean_pixel, self.skip.weight
        scores: Tensor = read @ weight[words].T
        return scores

    def match_scores(self, cls: Tensor) -> Tensor:
        """Log-odds of a match [T], from the [CLS] vectors [T, d]."""
        logits = in_float32(self.itm_head, cls)
        return logits[:, 1] - logits[:, 0]


@dataclass
class PreTrainingOutput(ModelOutput):
    """mlm_logits [masked, V] or [T, L, V]; itm_logits [T, 2] (mismatch, match); the rest as in `PixelBertOutput`."""

    loss: Tensor | None = None
    mlm_logits: Tensor | None = None
    itm_logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    attention_mask: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
