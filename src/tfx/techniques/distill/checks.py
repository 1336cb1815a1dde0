"""Which settings, teachers and students of distillation fit together."""

from __future__ import annotations

from tfx.config.mixture import mixed
from tfx.config.schema import Budget, Root
from tfx.config.task_facts import TASKS
from tfx.errors import UserError
from tfx.tasks import task_named
from tfx.tasks.contract import Task
from tfx.tasks.prepare import PreparedData
from tfx.techniques.contract import Teacher, TeacherNeed
from tfx.techniques.distill.settings import DistillSettings


def check_settings(settings: DistillSettings, config: Root, need: TeacherNeed) -> None:
    """Raises `UserError` for settings that do nothing, or that do not fit together or to the task."""
    if not (uses_logits(settings) or matches_layers(settings) or settings.sequence_level or settings.initialise):
        raise UserError(
            "technique.distill has nothing to do: loss=none or alpha=0, hidden=0, attention=0, relations=0, "
            "sequence_level=false, initialise=false"
        )
    task, is_classification = TASKS[config.dataset.task], config.dataset.task == "classification"
    if settings.sequence_level and not task.decodes:
        raise UserError(
            f"technique.distill.sequence_level is for text to text, not for {task.what}: set it to false, also where "
            "experiment=small brings it"
        )
    if settings.cache_top_k is not None and not (task.decodes or is_classification):
        raise UserError(f"technique.distill.cache_top_k is for text to text and labels, not for {task.what}")
    if settings.cache_top_k is not None and is_classification and config.dataset.predict != "one":
        raise UserError(
            "technique.distill.cache_top_k keeps the largest logits of one label a text, and "
            f"dataset.predict={config.dataset.predict}: leave it out"
        )
    if is_classification and config.dataset.predict != "one" and uses_logits(settings):
        _check_answers(settings, config.dataset.predict)
    if config.dataset.monolingual is not None:
        _check_monolingual(settings, config)
    if settings.align_tokens:
        _check_alignment(settings, config)
    if settings.on_policy:
        if not uses_logits(settings):
            raise UserError(
                "technique.distill.on_policy has the teacher judge what the student writes, by its logits: leave "
                "technique.distill.loss=none and alpha=0 out"
            )
        if settings.cache_top_k is not None:
            raise UserError(
                "technique.distill.cache_top_k keeps the teacher's logits of the data, and technique.distill.on_policy "
                "trains on what the student writes: keep one of them"
            )
        if type(task_named(config.dataset.task)).sampled is Task.sampled:
            raise UserError(
                f"technique.distill.on_policy: {TASKS[config.dataset.task].what} writes no texts to be judged by"
            )
        if any(corpus.document_mask for corpus, _ in mixed(config.dataset)):
            raise UserError(
                "technique.distill.on_policy has the student continue windows with several documents, which "
                "dataset.document_mask keeps apart: leave one of the two out"
            )
    if settings.relations and not settings.relation_pairs:
        raise UserError("technique.distill.relations needs technique.distill.relation_pairs, and none is named")
    if settings.cache_top_k is not None and settings.loss == "reverse_kl":
        raise UserError(
            "technique.distill.loss=reverse_kl needs the teacher's whole distribution, and "
            f"technique.distill.cache_top_k={settings.cache_top_k} keeps a part of it: leave it out, or "
            "set technique.distill.loss=forward_kl"
        )
    if settings.teacher is not None and settings.teacher_model is not None:
        raise UserError(
            f"technique.distill.teacher={settings.teacher} names a teacher that exists, and "
            f"technique.distill.teacher_model={settings.teacher_model} one that is to be trained: keep one of them"
        )
    if need.paths and need.budget != Budget():
        named = f"init_from={config.init_from}"
        if settings.teacher is not None:
            named = f"technique.distill.teacher={settings.teacher}"
        raise UserError(
            f"{named} is a teacher that exists, and technique.distill.teacher_budget is for one that is "
            "to be trained: leave the budget out, or name its model (technique.distill.teacher_model=MODEL)"
        )


def _check_answers(settings: DistillSettings, predict: str) -> None:
    """Raises `UserError` for what compares distributions over labels, where a teacher answers otherwise."""
    usual = DistillSettings()
    for name in ("loss", "temperature"):
        if (value := getattr(settings, name)) != getattr(usual, name):
            what = "numbers" if predict == "number" else "labels that hold or not, each by itself"
            raise UserError(
                f"technique.distill.{name}={value} is for one label a text, and with dataset.predict={predict} the "
                f"student learns the teacher's {what}: leave it out"
            )


def _check_alignment(settings: DistillSettings, config: Root) -> None:
    if not uses_logits(settings):
        raise UserError(
            "technique.distill.align_tokens is a way to learn from logits: leave technique.distill.loss=none and "
            "alpha=0 out"
        )
    if settings.cache_top_k is not None:
        raise UserError(
            "technique.distill.cache_top_k keeps logits of the student's own tokens, and "
            "technique.distill.align_tokens is for teachers with others: leave one of them out"
        )
    if type(task_named(config.dataset.task)).retold is Task.retold:
        raise UserError(
            f"technique.distill.align_tokens: the targets of {TASKS[config.dataset.task].what} are no texts that other "
            "tokens could spell"
        )


def _check_monolingual(settings: DistillSettings, config: Root) -> None:
    if TASKS[config.dataset.task].decodes and not settings.sequence_level:
        raise UserError(
            "dataset.monolingual has sources alone: have the teacher write their targets "
            "(technique.distill.sequence_level=true)"
        )
    if not settings.sequence_level and not (uses_logits(settings) or matches_layers(settings)):
        raise UserError(
            "dataset.monolingual has no targets, so that the student learns from the teacher alone what to make of it: "
            "leave technique.distill.loss=none out"
        )
    if settings.cache_top_k is not None and TASKS[config.dataset.task].decodes:
        raise UserError(
            "technique.distill.cache_top_k keeps the teacher's logits of one corpus, and dataset.monolingual adds "
            "another: keep one of them"
        )


def uses_logits(settings: DistillSettings) -> bool:
    """Whether the student ever learns from its teachers' logits."""
    return settings.loss != "none" and (settings.alpha > 0 or bool(settings.alpha_final))


def matches_layers(settings: DistillSettings) -> bool:
    """Whether the student learns from its teachers' layers."""
    return bool(settings.hidden or settings.attention or settings.relations)


def reads_states(settings: DistillSettings) -> bool:
    """Whether that needs the states between the layers, and not the last ones alone."""
    return bool(settings.attention or settings.relations or (settings.hidden and settings.layer_map != "last"))


def check_teacher(settings: DistillSettings, teacher: Teacher, data: PreparedData) -> None:
    """Raises `UserError` if the student learns from logits or layers, and the teacher's are of other outputs or tokens.

    Where the outputs are no tokens, those of models with different tokenizers can be compared.
    """
    architecture = teacher.model.architecture
    loss, hidden = f"loss={settings.loss}", f"hidden={settings.hidden:g}"
    learnt = {
        loss: uses_logits(settings),
        hidden: settings.hidden > 0,
        f"attention={settings.attention:g}": settings.attention > 0,
        f"relations={settings.relations:g}": settings.relations > 0,
        "initialise=true": settings.initialise,
    }
    asked = [name for name, is_used in learnt.items() if is_used]
    if not asked:
        return
    if architecture.family != data.task:
        raise UserError(
            f"technique.distill.{asked[0]} needs a teacher of the student's own family: {teacher.path} is a model for "
            f"{architecture.family}, and dataset '{data.name}' is for {data.task}; name another "
            "(technique.distill.teacher=RUN)"
        )
    if architecture.outputs != data.outputs and (settings.hidden or uses_logits(settings)):
        raise UserError(
            f"technique.distill.{asked[0]}: the teacher {teacher.path} has other labels than the data, or another "
            "order or scale of them: name one that was trained on these labels (technique.distill.teacher=RUN)"
        )
    free = {loss} if settings.align_tokens else set()
    if data.outputs is not None:
        free = {loss, hidden} if settings.layer_map == "last" else {loss}
    strict = [name for name in asked if name not in free]
    is_same = teacher.tokenizer_fingerprint == data.tokenizer.fingerprint
    if strict and not is_same:
        raise UserError(
            f"technique.distill.{strict[0]}: the teacher has another tokenizer than the student, so their tokens "
            f"differ ({teacher.path}); give the student the teacher's (dataset.tokenizer.path=TEACHER_RUN/"
            "tokenizer.json, or =FOLDER for a model folder of transformers), learn from its outputs alone "
            "(technique.distill.sequence_level=true technique.distill.loss=none), or from likelihoods of common spans "
            "(technique.distill.align_tokens=true)"
        )
    if is_same:
        check_context(settings, teacher, data.splits["train"].longest, "dataset.max_tokens={}", -1)


def check_context(settings: DistillSettings, teacher: Teacher, longest: int, remedy: str, offset: int = 0) -> None:
    """Raises `UserError` if the teacher's context is too short for the inputs."""
    context = teacher.model.architecture.context
    if longest > context and (uses_logits(settings) or matches_layers(settings)):
        raise UserError(
            f"technique.distill: the student's inputs have up to {longest} tokens, and the teacher "
            f"{teacher.path} takes {context}: set {remedy.format(context + offset)}, or name another teacher"
        )
