"""ResNet-18 on CIFAR-10, planned for ten minutes on one H200; not timed yet.

Source:    ours: resnet18_cifar10.py shortened: batch 512, 150 epochs, no very small crops.
Data:      an .npz file with x_train, y_train, x_test, y_test (needs no TensorFlow): --config.data.data_dir=FILE; or TFDS:
           --config.data.source=tfds --config.data.name=cifar10 --config.data.data_dir= --config.data.download=True
Hardware:  one H200 (or H100); other GPUs take longer.
Expected:  not measured yet; the aim is 90 % top-1 of a linear classifier in ten minutes. lightly reports 84.2 % kNN for 200
           epochs. experiments/gpu_session.sh runs it, and reports time and accuracy.

150 epochs are 7.5 M images; at an estimated 13 000 images/s for a ResNet-18 at 32 pixels on such a device, they would take ten
minutes. Crops have at least a fifth of the image's area, which suits short trainings; learning rates are those of the long run.
"""

from configs import resnet18_cifar10


def get_config():
    config = resnet18_cifar10.get_config()
    config.batch_size = 512
    config.epochs = 150

    config.data.source = "arrays"
    config.data.name = ""
    config.data.data_dir = "cifar10.npz"
    for view in (config.barlow_twins.view_a, config.barlow_twins.view_b):
        view.crop_scale = (0.2, 1.0)

    config.optimizer.warmup_epochs = 5
    config.checkpoint.every_epochs = 50
    config.monitor.every_epochs = 50
    config.log.every_steps = 100
    return config
