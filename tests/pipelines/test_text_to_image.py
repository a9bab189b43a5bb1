import torch
def test_smoke(tiny_pipeline, tmp_path):
    out = tiny_pipeline(["a red apple", "a blue house on the left of a cat"], num_images_per_prompt=2, size=256, generator=torch.Generator().manual_seed(0))
    print(out.images[0].size, out.image_embeds.shape)
    tiny_pipeline.save_pretrained(tmp_path/"x")
    import os; print(os.listdir(tmp_path/"x"), open(tmp_path/"x"/"model_index.json").read())
    from diffusers import DiffusionPipeline
    p = type(tiny_pipeline).from_pretrained(tmp_path/"x")
    p = DiffusionPipeline.from_pretrained(tmp_path/"x")
    o2 = p(["a red apple", "a blue house on the left of a cat"], num_images_per_prompt=2, size=256, generator=torch.Generator().manual_seed(0))
    assert o2.images[3].tobytes()==out.images[3].tobytes()
