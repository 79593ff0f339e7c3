"""ResNet-18 on CIFAR-10 in ten minutes: the best accuracy that one H200 can give in that time.

Source:    ours: resnet18_cifar10.py, cut to fit: batch 512, 150 epochs, less of the narrowest crops.
Data:      an .npz file with x_train, y_train, x_test, y_test (needs no TensorFlow): --config.data.data_dir=FILE; or TFDS:
           --config.data.source=tfds --config.data.name=cifar10
Hardware:  one H200 (or H100); on others the same run takes longer.
Expected:  nothing yet: the aim is 90 % of a linear classifier in ten minutes, and no GPU was at hand to measure. For 200
           epochs lightly gives 84.2 % kNN. experiments/gpu_session.sh runs it, and tells time and accuracy.

150 epochs are 7.5 M images; at the 13 000 a second that a ResNet-18 at 32 pixels may reach on such a device, an estimate,
they take ten minutes. Crops begin at a fifth of the image's area, as short trainings like them; the rates are those of the
long run.
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
