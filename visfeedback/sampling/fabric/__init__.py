"""FABRIC: liked and disliked images steer a diffusers pipeline through its self-attention, without training.

Paper: von Rütte et al. 2023, "FABRIC: Personalizing Diffusion Models with Iterative Feedback", arXiv 2307.10159.
The references pass through the denoiser, noised to the step at hand; their keys and values are kept, and the images
being drawn attend to them beside their own: the liked ones in the positive branch, the disliked ones in the negative::

    with vf.fabric(pipe, liked=["a.png"], disliked=["b.png"], strength=0.5) as session:
        images = pipe("a red car", num_images_per_prompt=4).images
        session.like(images[0])

What lives here: ``session`` (the with-block), ``settings`` (its knobs), ``weighting`` (the formula), ``schedule``,
``references`` (images), ``latents`` (encoding and noising them), ``bank`` (keys and values that are kept),
``processors``, and a file for each kind of network: ``unet`` (SD 1.x, 2.x, SDXL), ``sd3``, ``flux``.
To add a kind of network: a module like ``sd3`` with ``DENOISERS``, put here or handed in as ``family=module``.
Left out: region masks on references, token merging. May import: types, torch, diffusers' attention dispatcher.
"""
