"""Prompts and models as assets: the cases, one evaluation per prompt version x model, the gate before a new prompt."""

from collections.abc import Iterator

import dagster as dg

from dangerous_driving.assessment.prompt import available_versions
from dangerous_driving.defs.resources import EvaluatorResource
from dangerous_driving.errors import ConfigError
from dangerous_driving.evaluation.promotion import Ruling
from dangerous_driving.evaluation.run import Evaluated
from dangerous_driving.settings import Settings

GROUP = "evaluation"
PROMPT, MODEL = "prompt", "model"
PROMPT_EVALUATIONS = dg.AssetKey("prompt_evaluations")

GateEvent = dg.MaterializeResult[None] | dg.AssetMaterialization


def evaluation_partitions(settings: Settings) -> dg.MultiPartitionsDefinition:
    """Prompt version x model. A new prompt file or model is there after the code location is loaded again."""
    models = dict.fromkeys((settings.llm.model, *settings.evaluation.models))
    return dg.MultiPartitionsDefinition(
        {
            PROMPT: dg.StaticPartitionsDefinition(list(available_versions(settings.llm.prompt_folder))),
            MODEL: dg.StaticPartitionsDefinition(list(models)),
        }
    )


def evaluation_assets(settings: Settings) -> list[dg.AssetsDefinition | dg.AssetSpec]:
    """All of them, and the promotions, which people make, too."""
    promotions = dg.AssetSpec(
        "prompt_promotions",
        deps=["prompt_gate"],
        group_name=GROUP,
        kinds={"postgres"},
        metadata={"dagster/table_name": "public.prompt_promotion"},
        description="Which prompt is in use since when; written by the gate and by `dangerous-driving prompts`.",
    )
    return [_cases(), _evaluations(settings), _gate(settings), promotions]


def _cases() -> dg.AssetsDefinition:
    @dg.asset(
        deps=["risk_assessments"],
        group_name=GROUP,
        kinds={"postgres"},
        metadata={"dagster/table_name": "public.evaluation_set_case"},
        description=(
            "Scenes whose true level is known: what operators confirmed or rejected, simulated scenes, imported pictures. "
            "A run takes in new verdicts, copies their pictures and freezes all cases as the next version of the set."
        ),
    )
    def evaluation_cases(evaluator: EvaluatorResource) -> dg.MaterializeResult[None]:
        collected, frozen = evaluator.refresh()
        return dg.MaterializeResult(
            metadata={
                "set_version": frozen.version,
                "dagster/row_count": frozen.cases,
                "held_out": frozen.held_out,
                "disagreements": frozen.disagreements,
                "new_labels": collected.labels,
                "new_cases": collected.cases,
                "verdicts_without_picture": dg.MetadataValue.json(list(collected.without_picture)),
            }
        )

    return evaluation_cases


def _evaluations(settings: Settings) -> dg.AssetsDefinition:
    @dg.asset(
        key=PROMPT_EVALUATIONS,
        partitions_def=evaluation_partitions(settings),
        deps=["evaluation_cases"],
        group_name=GROUP,
        kinds={"postgres", "openai"},
        metadata={"dagster/table_name": "public.evaluation_run"},
        description=(
            "A prompt version and model, asked about every case of the newest set, from the key pool's evaluation lane. "
            "A run that was killed or ran out of budget goes on where it was; answers that are fresh enough are taken over."
        ),
    )
    def prompt_evaluations(
        context: dg.AssetExecutionContext, evaluator: EvaluatorResource
    ) -> dg.MaterializeResult[None]:
        key = context.partition_key
        assert isinstance(key, dg.MultiPartitionKey)  # noqa: S101
        try:
            found = evaluator.evaluate(key.keys_by_dimension[PROMPT], key.keys_by_dimension[MODEL])
        except ConfigError as error:
            raise dg.Failure(str(error), allow_retries=False) from error
        require_settled(found)
        return dg.MaterializeResult(metadata=evaluation_metadata(found))

    return prompt_evaluations


def _gate(settings: Settings) -> dg.AssetsDefinition:
    @dg.asset(
        deps=[PROMPT_EVALUATIONS, "evaluation_cases"],
        group_name=GROUP,
        kinds={"postgres"},
        output_required=False,  # without cases or challengers there is nothing to decide
        metadata={"dagster/table_name": "public.prompt_decision"},
        description=(
            "The prompt in use and each of `evaluation.challengers` on the newest set: a challenger that is significantly "
            "worse on a guarded metric is refused, one that is better is promoted (`evaluation.promote_better`). "
            "It evaluates what of them is not evaluated yet."
        ),
    )
    def prompt_gate(context: dg.AssetExecutionContext, evaluator: EvaluatorResource) -> Iterator[GateEvent]:
        if evaluator.is_empty():
            context.log.info("there are no cases yet: nothing to evaluate")
            return
        problems: list[str] = []
        for number, version in enumerate(evaluator.versions()):
            try:
                found = evaluator.evaluate(version, settings.llm.model)
                require_settled(found)
            except (ConfigError, dg.Failure) as error:
                if not number:
                    # without the champion there is nothing to hold the others against
                    raise dg.Failure(f"the prompt in use: {_words(error)}", allow_retries=False) from error
                problems.append(f"{version}: {_words(error)}")
                continue
            partition = dg.MultiPartitionKey({PROMPT: version, MODEL: settings.llm.model})
            yield dg.AssetMaterialization(
                PROMPT_EVALUATIONS, partition=str(partition), metadata=evaluation_metadata(found)
            )
        rulings = evaluator.rulings(skipped={problem.partition(": ")[0] for problem in problems})
        if rulings:
            yield dg.MaterializeResult(metadata=gate_metadata(rulings))
        for ruling in rulings:
            context.log.info(ruling.statistics)
        if problems:
            raise dg.Failure("; ".join(problems), allow_retries=False)

    return prompt_gate


def require_settled(found: Evaluated) -> None:
    """Fail a run that stopped before every case was settled; what is answered stays.

    Raises:
        Failure: with the reason.
    """
    if found.asking.stopped:
        raise dg.Failure(
            f"{found.asking.settled} of {found.asking.wanted} answers: {found.asking.stopped}", allow_retries=False
        )


def evaluation_metadata(found: Evaluated) -> dict[str, dg.MetadataValue]:
    """What people want to see of an evaluation."""
    assert found.held_out is not None  # it is settled  # noqa: S101
    assert found.report is not None  # noqa: S101
    metadata: dict[str, dg.MetadataValue] = {
        "report": dg.MetadataValue.md(found.report.markdown),
        "report_object": dg.MetadataValue.text(found.report_url or ""),
        "run": dg.MetadataValue.text(found.asking.key.run),
        "set_version": dg.MetadataValue.int(found.asking.key.set_version),
        "cases": dg.MetadataValue.int(found.held_out.cases),
        "asked_by_this_run": dg.MetadataValue.int(found.asking.asked),
        "coverage": dg.MetadataValue.float(found.held_out.coverage),
    }
    for name, item in found.held_out.estimates.items():
        if item.value is not None:  # numbers: Dagster plots them over time
            metadata[name] = dg.MetadataValue.float(item.value)
    return metadata


def gate_metadata(rulings: list[Ruling]) -> dict[str, dg.MetadataValue]:
    """The verdicts in words, with the plots."""
    return {
        "verdicts": dg.MetadataValue.json({item.challenger: item.decision.verdict.value for item in rulings}),
        "promoted": dg.MetadataValue.json([item.challenger for item in rulings if item.promotion is not None]),
        "decisions": dg.MetadataValue.json([item.decision_id for item in rulings]),
        "report_objects": dg.MetadataValue.json([item.report_url for item in rulings]),
        "report": dg.MetadataValue.md("\n\n".join(item.report.markdown for item in rulings)),
    }


def _words(error: ConfigError | dg.Failure) -> str:
    return str(error.description) if isinstance(error, dg.Failure) else str(error)
