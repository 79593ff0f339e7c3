"""ViT-S/16 on ImageNet: Barlow Twins with AdamW.

Source:    the network is timm's vit_small_patch16_224 (Dosovitskiy et al. 2021, arXiv 2010.11929; its small size is of Touvron et
           al. 2021, arXiv 2012.12877). The optimizer is that of MoCo v3's ViT-Small (Chen et al. 2021, arXiv 2104.02057, and
           facebookresearch/moco-v3, CONFIG.md): AdamW, 1.5e-4 × N/256, weight decay 0.1, 40 epochs of warm-up, then a cosine to 0,
           300 epochs; its batches are of 1024 (one node) or 4096. MoCo v3 decays all parameters and freezes the patch
           embedding; here biases, norms, class token and position embedding are not decayed, as in timm, and the patch
           embedding is trained. Views, loss and projector are those of Barlow Twins' paper.
           Why not LARS: stable-pretraining (galilai-group, benchmarks/imagenet10/RESULTS.md) reports that it collapses on a ViT, and
           trains Barlow Twins on a ViT-S/16 with AdamW and a rate of 5e-4.
Data:      as resnet50_imagenet.py: TFDS `imagenet2012`, prepared by hand, or an image folder:
           --config.data.source=folder --config.data.data_dir=DIR with DIR/train/<class>/*.JPEG
Hardware:  not run. MoCo v3 trains ViT-Small with batches of 1024 on 8 V100 of 32 GB. If a batch does not fit: --config.model.remat=True
Expected:  not known: nothing of this was run, and the learning rate, the weight decay and lambda were not tuned for the pair of this
           loss and this network. For scale: MoCo v3 reports 73.2 % top-1 of a linear classifier for its ViT-Small (CONFIG.md; with
           other heads), and stable-pretraining 83.0 % for Barlow Twins on ten classes.

The position embedding is for images of 224 pixels, so methods with small crops or patches (swav.small_crops, pirl) do not fit.
"""

from bt_jax.config import default


def get_config():
    config = default(optimizer="adamw")
    config.dtype = "bfloat16"
    config.batch_size = 1024
    config.epochs = 300

    config.data.source = "tfds"
    config.data.name = "imagenet2012"
    config.data.test_split = "validation"
    config.data.image_size = 224
    config.data.eval_resize = 256

    config.model.arch = "vit_small"
    config.model.patch_size = 16

    config.barlow_twins.projector = (8192, 8192, 8192)
    config.barlow_twins.lambd = 0.0051

    config.optimizer.learning_rate = 1.5e-4
    config.optimizer.weight_decay = 0.1
    config.optimizer.warmup_epochs = 40
    config.optimizer.end_factor = 0.0

    config.monitor.every_epochs = 10
    config.monitor.train_examples = 50000
    config.monitor.test_examples = 10000
    config.pod.images = 1_281_167
    return config
