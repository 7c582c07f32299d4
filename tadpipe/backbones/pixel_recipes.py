"""Named pixel recipes: how published models were shown their frames.

Standard library only: stores name the recipe of their features without loading torch.
"""

from __future__ import annotations

from tadpipe.config import PixelRecipe

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

PIXEL_RECIPES = {
    # the published VideoMAE V2 features of THUMOS14 and FineAction: values 0..1, no mean and std
    "videomaev2-tad": PixelRecipe(size=224, resize="squash", interpolation="float-bilinear"),
    # the official fine-tuning and evaluation of VideoMAE and VideoMAE V2, centre view
    "videomae-eval": PixelRecipe(
        size=224,
        resize="short-side",
        interpolation="float-bilinear",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    ),
    # mmaction2, OpenTAD and AdaTAD
    "mmaction": PixelRecipe(
        size=224,
        resize="short-side",
        interpolation="uint8-bilinear",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    ),
    # Hugging Face's image processor with its class defaults (it widens the filter when shrinking)
    "huggingface": PixelRecipe(
        size=224,
        resize="short-side",
        interpolation="antialias-bilinear",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    ),
    # mmaction2's convolutional models: a margin around the crop
    "mmaction-256": PixelRecipe(
        size=224,
        resize="short-side",
        resize_short_side=256,
        interpolation="uint8-bilinear",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    ),
    # I3D on RGB: values -1..1
    "i3d": PixelRecipe(
        size=224,
        resize="short-side",
        resize_short_side=256,
        interpolation="uint8-bilinear",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    ),
    # the same as pytorch-i3d's script has it: only pictures with a side below 226 are resized
    "pytorch-i3d": PixelRecipe(
        size=224,
        resize="enlarge",
        resize_short_side=226,
        interpolation="uint8-bilinear",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    ),
    # I3D on optical flow of -20..20 pixels, kept as 0..255: values -1..1
    "i3d-flow": PixelRecipe(
        size=224,
        resize="short-side",
        resize_short_side=256,
        interpolation="uint8-bilinear",
        mean=(0.5, 0.5),
        std=(0.5, 0.5),
        colour="flow-tvl1",
    ),
    # PySlowFast, in test, and Ego4D's features
    "pyslowfast": PixelRecipe(
        size=256,
        resize="short-side-floor",
        interpolation="float-bilinear",
        mean=(0.45, 0.45, 0.45),
        std=(0.225, 0.225, 0.225),
    ),
    # the same on frames as OpenCV reads them: EPIC-Kitchens' SlowFast was trained so
    "epic-slowfast": PixelRecipe(
        size=256,
        resize="short-side-floor",
        interpolation="float-bilinear",
        mean=(0.45, 0.45, 0.45),
        std=(0.225, 0.225, 0.225),
        colour="bgr",
    ),
    # TSP's R(2+1)D-34
    "tsp": PixelRecipe(
        size=112,
        resize="fixed",
        resize_to=(128, 171),
        interpolation="float-bilinear",
        mean=(0.43216, 0.394666, 0.37645),
        std=(0.22803, 0.22145, 0.216989),
    ),
}
