"""bt_jax/config/schema.py and the files in configs/: a wrong config gets an error that names every fault."""

import importlib
import pathlib

import pytest

from bt_jax import config as config_lib
from bt_jax.config import files
from bt_jax.config.rules import at_least, between
from bt_jax.errors import UserError

CONFIGS = sorted(
    p.stem for p in (pathlib.Path(__file__).parent.parent / "configs").glob("*.py") if p.stem != "__init__"
)


def sound():
    """A config that passes: the defaults, with a folder."""
    config = config_lib.default()
    config.data.data_dir = "images"
    return config


def complaint(config):
    with pytest.raises(UserError) as error:
        config_lib.check(config)
    return str(error.value)


@pytest.mark.parametrize("task", config_lib.TASKS)
def test_every_field_has_a_rule_and_a_meaning(task):
    """A field without a rule would go unchecked; one that breaks its own rule would be refused where nobody set it."""
    fields = config_lib.fields_of(config_lib.default(task))
    assert fields.keys() == config_lib.flatten(config_lib.default(task)).keys()
    for name, field in fields.items():
        assert field.rule(field.default) is None, name
        assert field.doc and not field.doc.endswith("."), name


@pytest.mark.parametrize("name", CONFIGS)
def test_config_files_pass(name):
    """Each file in configs/ is sound and says what it is: source, hardware and expected result."""
    module = importlib.import_module(f"configs.{name}")
    config_lib.check(module.get_config())
    for word in ("Source:", "Hardware:", "Expected:"):
        assert word in module.__doc__, f"configs/{name}.py does not say {word}"


@pytest.mark.parametrize("name", ["quickstart", "resnet18_cifar10", "resnet18_cifar10_cpu", "resnet50_imagenet"])
def test_config_files_take_a_method(name):
    """All methods, and an error for a name that is none."""
    get_config = importlib.import_module(f"configs.{name}").get_config
    for method in config_lib.METHODS:
        config = get_config(method)
        assert config.method == method
        config_lib.check(config)
    assert get_config().to_dict() == get_config("barlow_twins").to_dict()
    with pytest.raises(UserError, match="method is 'supervized', but must be .* \\(did you mean 'supervised'\\?\\)"):
        get_config("supervized")


def test_supervised_recipe():
    """The numbers of Goyal et al. 2017, section 5.1."""
    from configs.resnet50_imagenet import get_config

    config = get_config("supervised")
    optimizer = config.optimizer
    assert (config.batch_size, config.epochs, optimizer.learning_rate, optimizer.warmup_epochs) == (256, 90, 0.1, 5)
    assert (optimizer.momentum, optimizer.nesterov, optimizer.weight_decay, optimizer.decay_norms) == (
        0.9,
        True,
        1e-4,
        False,
    )
    assert (optimizer.schedule, optimizer.decay_epochs, optimizer.decay_factor) == ("steps", (30, 60, 80), 0.1)
    view = config.supervised.view
    assert (view.crop_scale, view.flip, view.jitter, view.blur, view.solarize) == ((0.08, 1.0), 0.5, 0.0, 0.0, 0.0)


def test_recipes_of_the_other_papers():
    """Chen et al. 2020, appendix B, with the official loss of twice the paper's; Grill et al. 2020, appendix B; Bardes et al.
    2022, section 4.2.
    """
    from configs.resnet50_imagenet import get_config

    names = (
        "learning_rate_weights", "learning_rate_biases", "weight_decay", "warmup_epochs", "end_factor", "rate_in_momentum",
        "gradient_divisor", "trust_coefficient", "momentum",
    )  # fmt: skip
    expected = {
        "simclr": (0.3, 0.3, 1e-6, 10, 0.0, True, 0.5, 0.001, 0.9),
        "byol": (0.2, 0.2, 1.5e-6, 10, 0.0, False, 1.0, 0.001, 0.9),
        "vicreg": (0.2, 0.2, 1e-6, 10, 1e-3, False, 1.0, 0.001, 0.9),
    }
    configs = {method: get_config(method) for method in expected}
    for method, numbers in expected.items():
        assert tuple(configs[method].optimizer[name] for name in names) == numbers, method
        assert configs[method].epochs == 1000
    assert [configs[method].batch_size for method in expected] == [4096, 4096, 2048]
    simclr, byol, vicreg = configs["simclr"].simclr, configs["byol"].byol, configs["vicreg"].vicreg
    assert (simclr.temperature, tuple(simclr.projector)) == (0.1, (2048, 128))
    assert (configs["simclr"].data.mean, configs["simclr"].data.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert all(config.model.zero_init_residual for config in configs.values())
    view = simclr.view
    assert (view.brightness, view.contrast, view.saturation, view.hue) == (0.8, 0.8, 0.8, 0.2)
    assert (view.jitter, view.grayscale, view.blur, view.solarize, view.crop_scale) == (0.8, 0.2, 0.5, 0.0, (0.08, 1.0))
    assert (byol.target_momentum, tuple(byol.projector), tuple(byol.predictor)) == (0.996, (4096, 256), (4096,))
    assert (
        byol.view_a == config_lib.default().barlow_twins.view_a
        and byol.view_b == config_lib.default().barlow_twins.view_b
    )
    assert (vicreg.invariance, vicreg.variance, vicreg.covariance) == (25.0, 25.0, 1.0)
    assert tuple(vicreg.projector) == (8192, 8192, 8192) and (vicreg.view.blur, vicreg.view.solarize) == (0.5, 0.1)


def test_networks_and_crops_of_swav_and_pirl_are_torchvision_s_defaults():
    """Blocks whose last scale starts at 1 (swav, src/resnet50.py; vissl, defaults.yaml), and crops that are resized bilinearly."""
    from configs.resnet50_imagenet import get_config

    for method, views in (("swav", ("view", "small_view")), ("pirl", ("view", "patch_view"))):
        config = get_config(method)
        assert not config.model.zero_init_residual
        assert {config[method][name].interpolation for name in views} == {"bilinear"}


def test_cifar_recipes_of_solo_learn():
    """scripts/pretrain/cifar: rates, decay, trust coefficient, clipping; the loss of Barlow Twins alone is scaled by 0.1."""
    from configs import resnet18_cifar10, resnet18_cifar10_cpu

    expected = {
        "barlow_twins": (0.3, 0.3, 1e-4, 0.02, True, 10.0),
        "simclr": (0.4, 0.4, 1e-4, 0.02, True, 1.0),
        "byol": (1.0, 1.0, 1e-5, 0.02, True, 1.0),
        "vicreg": (0.3, 0.3, 1e-4, 0.02, True, 1.0),
    }
    names = (
        "learning_rate_weights",
        "learning_rate_biases",
        "weight_decay",
        "trust_coefficient",
        "clip",
        "gradient_divisor",
    )
    for method, numbers in expected.items():
        assert tuple(resnet18_cifar10.get_config(method).optimizer[name] for name in names) == numbers, method
        assert not resnet18_cifar10_cpu.get_config(method).optimizer.clip
    vicreg = resnet18_cifar10.get_config("vicreg").vicreg.view
    assert (vicreg.crop_scale, vicreg.blur, vicreg.solarize) == ((0.2, 1.0), 0.0, 0.1)


def test_fine_tuning_by_each_papers_protocol():
    """Batch, epochs, rates of encoder and head, Nesterov, schedule; and a word for what is not known."""
    from configs.semi_supervised_imagenet import get_config

    tuned = {
        "1percent": (256, 20, 0.005, 0.5, False, "cosine"),
        "10percent": (256, 20, 0.002, 0.5, False, "steps"),
        "1percent,simclr": (4096, 60, 0.05, 0.05, True, "cosine"),
        "10percent,simclr": (4096, 30, 0.05, 0.05, True, "cosine"),
        "10percent,byol": (1024, 30, 0.02 / 4, 0.02 / 4, True, "cosine"),  # 0.02 in a batch of 1024
        "1percent,swav": (256, 20, 0.02, 5.0, False, "steps"),
        "10percent,swav": (256, 20, 0.01, 0.2, False, "steps"),
        "1percent,pirl": (256, 70, 0.05, 0.05, True, "steps"),
        "10percent,pirl": (256, 70, 0.05, 0.05, True, "steps"),
        "1percent,vicreg": (256, 20, 0.03, 0.08, False, "cosine"),
        "10percent,vicreg": (256, 20, 0.01, 0.1, False, "cosine"),
        "1percent,simclr,barlow_twins": (256, 20, 0.005, 0.5, False, "cosine"),
        "10percent,pirl,swav": (256, 20, 0.01, 0.2, False, "steps"),
    }
    for argument, numbers in tuned.items():
        config = get_config(argument)
        config_lib.check(config)
        sgd = config.sgd
        rates = (sgd.learning_rate_encoder, sgd.learning_rate_head, sgd.nesterov, sgd.schedule)
        assert (config.batch_size, config.epochs, *rates) == numbers, argument
        assert sgd.weight_decay == 0 and sgd.momentum == 0.9 and not config.finetune.from_scratch
        steps = ((30,), 0.1) if argument.endswith("pirl") else ((12, 16), 0.2)
        assert (tuple(sgd.decay_epochs), sgd.decay_factor) == steps, argument
    for wrong in ("2percent", "1percent,moco", "1percent,byol,moco", "1percent,byol,byol,byol"):
        with pytest.raises(
            UserError,
            match=f":{wrong} is not known; it takes 1percent or 10percent, after a comma the method, and after",
        ):
            get_config(wrong)


def test_fine_tuning_by_another_protocol_keeps_the_encoder():
    """Its run and the pixels that it was trained with; the protocol is recorded, and may change in a resumed run."""
    from configs.semi_supervised_imagenet import get_config

    own, common = get_config("1percent,simclr"), get_config("1percent,simclr,barlow_twins")
    assert (own.finetune.protocol, common.finetune.protocol) == ("SimCLR", "Barlow Twins")
    assert own.init_from == common.init_from == "runs/" + files.name_of("resnet50_imagenet:simclr")
    assert get_config("1percent").init_from == "runs/" + files.name_of("resnet50_imagenet")
    assert own.data == common.data and tuple(common.data.std) == (1.0, 1.0, 1.0)
    field = config_lib.fields_of(own)["finetune.protocol"]
    assert (field.default, field.resume) == ("own settings", "free")


@pytest.mark.parametrize(
    ("subset", "epochs", "rate", "steps", "decay"),
    [("1percent", 1000, 0.01, (700, 800, 900), 1e-2), ("10percent", 200, 0.1, (140, 160, 180), 1e-3)],
)
def test_the_supervised_row_is_from_scratch(subset, epochs, rate, steps, decay):
    """Zhai et al. 2019; with the protocol of another system it stays from scratch, and no encoder takes its protocol."""
    from configs.semi_supervised_imagenet import get_config

    config = get_config(f"{subset},supervised")
    config_lib.check(config)
    sgd, finetune = config.sgd, config.finetune
    assert (config.batch_size, config.epochs, config.init_from, finetune.from_scratch) == (256, epochs, "", True)
    assert finetune.learning_rate_from_scratch == rate and (sgd.momentum, sgd.nesterov) == (0.9, False)
    assert (sgd.schedule, tuple(sgd.decay_epochs), sgd.decay_factor, sgd.warmup_epochs) == ("steps", steps, 0.1, 5)
    assert (sgd.weight_decay, sgd.decay_norms, sgd.decay_biases) == (decay, False, False)
    assert tuple(config.data.mean) == tuple(config.data.std) == (0.5, 0.5, 0.5)
    view = config.supervised.view
    assert (view.jitter, view.grayscale, view.blur, view.flip) == (0, 0, 0, 0.5)

    common = get_config(f"{subset},supervised,barlow_twins")
    config_lib.check(common)
    assert common.finetune.from_scratch and (common.epochs, common.sgd.weight_decay) == (20, 0.0)
    with pytest.raises(UserError, match="names a protocol for training from scratch, but an encoder by simclr"):
        get_config(f"{subset},simclr,supervised")


def test_official_recipe():
    """The numbers of the official main.py; the paper's section 2.2 has λ = 5e-3 and a weight decay of 1.5e-6."""
    from configs.resnet50_imagenet import get_config

    config = get_config()
    optimizer = config.optimizer
    assert (config.batch_size, config.epochs, config.barlow_twins.lambd) == (2048, 1000, 0.0051)
    assert (optimizer.learning_rate_weights, optimizer.learning_rate_biases) == (0.2, 0.0048)
    assert (optimizer.weight_decay, optimizer.momentum, optimizer.trust_coefficient) == (1e-6, 0.9, 0.001)
    assert (optimizer.warmup_epochs, optimizer.end_factor, optimizer.gradient_divisor) == (10, 1e-3, 16)
    assert tuple(config.barlow_twins.projector) == (8192, 8192, 8192)
    a, b = config.barlow_twins.view_a, config.barlow_twins.view_b
    assert (a.blur, a.solarize, b.blur, b.solarize) == (1.0, 0.0, 0.1, 0.2)
    same = {
        "crop_scale": (0.08, 1.0),
        "flip": 0.5,
        "jitter": 0.8,
        "brightness": 0.4,
        "contrast": 0.4,
        "saturation": 0.2,
    }
    same |= {"hue": 0.1, "grayscale": 0.2, "blur_sigma": (0.1, 2.0)}
    for view in (a, b):
        assert {name: view[name] for name in same} == same


def test_batch_size_variants():
    """Figure 2 of the paper, and an error for what is not in it."""
    from configs.resnet50_imagenet_batch_size import get_config

    rates = {size: get_config(str(size)).optimizer.learning_rate_weights for size in (128, 256, 512, 1024, 2048, 4096)}
    assert rates == {128: 0.7, 256: 0.4, 512: 0.3, 1024: 0.25, 2048: 0.2, 4096: 0.2}
    biases = {size: get_config(str(size)).optimizer.learning_rate_biases for size in rates}
    assert biases == {128: 0.0168, 256: 0.0096, 512: 0.0072, 1024: 0.006, 2048: 0.0048, 4096: 0.0048}
    with pytest.raises(UserError, match="300.*128, 256, 512"):
        get_config("300")


def test_all_faults_are_told_together():
    """One start, one list: a wrong type, a wrong value with the nearest name, a range, and a contradiction."""
    config = sound().unlock()
    config.dtype = "bfloat61"
    config.optimizer.momentum = 1.0
    config.epochs = 5
    config.optimizer.unlock()
    config.optimizer.wieght_decay = 0.1
    del config.optimizer.weight_decay
    text = complaint(config)
    for part in (
        "did you mean 'bfloat16'",
        "optimizer.momentum is 1.0, but must be at least 0 and less than 1",
        "epochs is 5, but must be more than optimizer.warmup_epochs, which is 10",
        "no field 'optimizer.wieght_decay' (did you mean 'optimizer.weight_decay'?)",
        "optimizer.weight_decay is missing",
    ):
        assert part in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("batch_size", 1, "must be an integer of at least 2"),
        ("batch_size", 12.5, "must be an integer"),
        ("batch_size", True, "must be an integer"),
        ("data.source", "tfsd", "did you mean 'tfds'"),
        ("data.std", (0.1, 0.2), "data.std has 2 numbers, but data.channels is 3"),
        ("data.std", (0.1, 0.2, 0.0), "must be one or more positive numbers"),
        ("barlow_twins.view_a.crop_scale", (0.5, 0.2), "must be two increasing numbers between"),
        ("barlow_twins.view_b.flip", 1.5, "must be between 0 and 1"),
        ("data.eval_resize", 100, "must be 0 or at least data.image_size"),
        ("barlow_twins.projector", (64, 0), "must be positive integers, or empty"),
        ("barlow_twins.projector", (64, "64"), "must be positive integers, or empty"),
        ("model.arch", "resnet5", "did you mean"),
        ("barlow_twins.lambd", float("nan"), "must be a number"),
        ("optimizer.gradient_divisor", 0.0, "must be a positive number"),
        ("mesh.coordinator", "10.0.0.1:1234", "must be set together or not at all"),
        ("mesh.processes", 2, "must be set together or not at all"),
        ("mesh.model", 3, "must divide each of barlow_twins.projector, 8192-8192-8192"),
        ("mesh.heartbeat_seconds", 1, "must be an integer of at least 5"),
        ("mesh.join_seconds", 0, "must be an integer of at least 5"),
        ("data.data_dir", "", "must name the image folder"),
        ("data.views", "devcie", "did you mean 'device'"),
        ("data.canvas_size", -1, "must be an integer of at least 0"),
        ("barlow_twins.view_a.blur_sigma", (0.1, 2.5), "must be two increasing numbers between 0.001 and 2.4"),
        ("steps_per_dispatch", 0, "must be an integer of at least 1"),
        ("steps_per_dispatch", 8, "must be 1 when data.views is 'host'"),
        ("profile.after", 0, "must be an integer of at least 1"),
        ("checkpoint.every_epochs", 0, "must be an integer of at least 1"),
        ("barlow_twins.terms", "on", "must be 'both', 'invariance' or 'redundancy'"),
        ("barlow_twins.temperature", 0.0, "must be a positive number"),
        ("barlow_twins.mixed", -1.0, "must be a number of at least 0"),
        ("barlow_twins.predictor", (0,), "must be positive integers, or empty"),
    ],
)
def test_wrong_values(name, value, expected):
    """Each rule is enforced, and its message names the field."""
    config = sound()
    with config.ignore_type():
        config.update_from_flattened_dict({name: value})
    text = complaint(config)
    assert name in text and expected in text


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"projector": (64,), "projector_batch_norm": False}, "a projector of 1 layer has no batch norm anyway"),
        ({"symmetrized": True}, "symmetrized is True, which changes nothing without barlow_twins.predictor"),
        ({"symmetrized": True, "stop_gradient": True}, "which halves the gradient and changes nothing else without"),
        ({"terms": "redundancy", "lambd": 0.0}, "lambd is 0, so that the loss is 0 when barlow_twins.terms is"),
        ({"terms": "invariance", "off_diagonals": "auto"}, "off_diagonals is 'auto', but they are not in the loss"),
        ({"mixed": 4.0, "lambd": 0.0}, "mixed is 4, but its weight is that times barlow_twins.lambd, which is 0"),
        ({"loss": "cross_entropy", "form": "gram"}, "form is 'gram', but must be 'auto' or 'correlation' when"),
        ({"temperature": 0.5}, "temperature is 0.5, but is only used when barlow_twins.loss is 'cross_entropy'"),
        (
            {"mixed": 1.0, "predictor": (64,)},
            "mixed is 1, which goes with the whole loss only, but barlow_twins.pred",
        ),
        ({"mixed": 1.0, "normalization": "none"}, "goes with the whole loss only, but barlow_twins.normalization is"),
        ({"mesh.model": 3, "projector": (9,), "predictor": (8,)}, "must divide each of barlow_twins.predictor, 8"),
        ({"optimizer.rates": "paper", "optimizer.scaling": "sqrt"}, "optimizer.scaling is 'sqrt', but the rates of"),
        (
            {"optimizer.rates": "paper", "optimizer.trust_coefficient": 0.02},
            "optimizer.trust_coefficient is 0.02, but the rates of optimizer.rates='paper' go with 0.001",
        ),
        (
            {"optimizer.rates": "paper", "optimizer.trust_coefficient": 0.02, "optimizer.clip": True},
            "optimizer.trust_coefficient is 0.02 and optimizer.clip is True, but the rates of optimizer.rates='paper' go with "
            "0.001 and False",
        ),
        ({"mesh.model": 2, "projector": ()}, "mesh.model is 2, but barlow_twins.projector is empty, so that"),
    ],
)
def test_ablations_that_contradict(fields, sentence):
    """One sentence for each."""
    config = sound()
    config.update_from_flattened_dict({n if "." in n else f"barlow_twins.{n}": v for n, v in fields.items()})
    text = complaint(config)
    assert sentence in text and ";" not in text


def test_cached_features_need_no_batch_norm():
    config = config_lib.default("linear")
    config.init_from = "runs/x"
    config.linear.update(batch_norm=True, cached=True)
    assert "linear.batch_norm is True, but with linear.cached features are standardised once" in complaint(config)


def test_transfer_by_vissls_head():
    """On Places and iNaturalist: batch norm on the features, which is not decayed, and Nesterov momentum."""
    from configs import linear_imagenet, transfer_inat, transfer_places

    for made, on in ((transfer_places, True), (transfer_inat, True), (linear_imagenet, False)):
        config = made.get_config()
        config_lib.check(config)
        assert (config.linear.batch_norm, config.sgd.nesterov, config.sgd.decay_norms) == (on, on, not on)


def test_vicregs_hinges_on_cifar10():
    """solo-learn's weight 25 is for their sum, where the loss has the mean; the small version keeps what it was measured with."""
    from configs import resnet18_cifar10, resnet18_cifar10_cpu

    assert resnet18_cifar10.get_config("vicreg").vicreg.variance == 50
    assert resnet18_cifar10_cpu.get_config("vicreg").vicreg.variance == 25


def test_ablations_that_go_together():
    config = sound()
    config.barlow_twins.update(projector=(), predictor=(64,), stop_gradient=True, symmetrized=True)
    config.barlow_twins.update(loss="cross_entropy", temperature=0.5, off_diagonals="auto", normalization="features")
    config_lib.check(config)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("export.platforms", ("cpu", "gpu"), "must be one or more of 'cpu', 'cuda', 'rocm' and 'tpu'"),
        ("export.dtype", "float16", "must be 'float32' or 'bfloat16'"),
    ],
)
def test_wrong_values_of_an_export(name, value, expected):
    config = config_lib.default("export")
    config.update_from_flattened_dict({name: value})
    text = complaint(config)
    assert name in text and expected in text


def test_one_process_may_stay_by_itself():
    config = sound()
    config.mesh.processes = 1
    config_lib.check(config)


def test_monitor_needs_a_test_split():
    config = sound()
    config.data.test_split, config.monitor.every_epochs = "", 1
    assert "data.test_split is empty" in complaint(config)


def test_epochs_that_are_kept_must_be_saved():
    config = sound()
    config.checkpoint.every_epochs, config.checkpoint.keep_every_epochs = 2, 5
    assert "checkpoint.keep_every_epochs is 5, but must be a multiple of every_epochs, which is 2" in complaint(config)


def test_overrides_of_unknown_fields():
    """All misspelt names of the command line are reported at once, with the nearest field, before any is parsed."""
    argv = ["main.py", "--config.epoch=3", "--config.optimizer.lambd=1", "--config.batch_size=64", "--workdir=x"]
    with pytest.raises(UserError) as error:
        config_lib.check_overrides(argv)
    assert "'epoch' (did you mean 'epochs'?)" in str(error.value)
    assert "'optimizer.lambd' (did you mean 'barlow_twins.lambd'?)" in str(error.value)
    assert "batch_size" not in str(error.value)


@pytest.mark.parametrize(
    ("argument", "config", "sentence"),
    [
        ("loss.lambd", ("pretrain",), "loss.lambd is now called barlow_twins.lambd."),
        ("loss.lambd", ("pretrain", "supervised"), "loss.lambd is now called barlow_twins.lambd, which belongs to the method"),
        ("data.view_a.blur", ("knn",), "data.view_a.blur is now called pairs.view_a.blur."),
        ("monitor.batch_size", ("linear",), "monitor.batch_size is now called features.batch_size."),
        ("data.view_supervised.flip", ("finetune",), "data.view_supervised.flip is now called supervised.view.flip."),
        ("knn.k", ("pretrain",), "knn.k belongs to the task 'knn', but this run's task is 'pretrain'."),
        ("linear.l2", ("knn",), "linear.l2 belongs to the tasks 'linear' and 'transfer', but this run's task is 'knn'."),
        ("barlow_twins.lambd", ("linear",), "belongs to the task 'pretrain', but this run's task is 'linear'."),
        ("supervised.label_smoothing", ("pretrain",), "belongs to the method 'supervised', but this run's method is 'barlow_twins'."),
        ("optimizer.nesterov", ("pretrain",), "belongs to the optimizer 'sgd', but this run's is 'lars'."),
        ("optimzer.momentum", ("pretrain",), "there is no field 'optimzer.momentum' (did you mean 'optimizer.momentum'?)."),
        ("zzz.yyy", ("pretrain",), "there is no field 'zzz.yyy'."),
        ("method", ("pretrain",), "--config=FILE:METHOD"),
        ("optimizer.name", ("pretrain",), "default(optimizer=…)"),
    ],
)  # fmt: skip
def test_overrides_of_fields_that_are_not_this_runs(argument, config, sentence):
    """The message says whose it is, or what it is called now."""
    with pytest.raises(UserError) as error:
        config_lib.check_overrides([f"--config.{argument}=1", "--config.seed=1"], config_lib.default(*config))
    assert sentence in str(error.value) and str(error.value).count(";") == 0


def test_a_misspelt_group():
    """One sentence, however many fields it has."""
    config = sound()
    config.optimiser = config.optimizer
    del config.optimizer
    text = complaint(config)
    assert text == (
        "the config is wrong: there is no group 'optimiser' (did you mean 'optimizer'?); the group optimizer is missing."
    )


def test_a_group_of_another_task_or_method():
    config = sound()
    config.knn = config_lib.default("knn").knn
    config.supervised = config_lib.default(method="supervised").supervised
    text = complaint(config)
    assert "knn belongs to the task 'knn', but this run's task is 'pretrain'" in text
    assert "supervised belongs to the method 'supervised', but this run's method is 'barlow_twins'" in text
    assert text.count(";") == 1


def test_a_task_or_optimizer_by_name_alone():
    """Its fields are missing; one sentence says what to do."""
    config = sound()
    config.task = "linear"
    assert complaint(config).startswith(
        "task is 'linear', but this config has the fields of the task 'pretrain'; make it with"
    )
    config = sound()
    config.optimizer.name = "sgd"
    assert complaint(config).startswith(
        "optimizer.name is 'sgd', but this config has the fields of the optimizer 'lars'; make it with"
    )


def test_json_round_trip():
    """A run's config.json reads back as the same config, tuples included."""
    config = sound()
    assert config_lib.from_json(config_lib.to_json(config)).to_dict() == config.to_dict()


def test_large_limits_are_shown_with_all_their_digits():
    """And not as 2.14748e+09."""
    assert at_least(2**31 - 1)(0) == "must be an integer of at least 2147483647"
    assert between(0.5, 2**31 - 1)(0) == "must be between 0.5 and 2147483647"
