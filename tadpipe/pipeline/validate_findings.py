"""What `tadpipe validate` can find: every kind of finding with what it means and what to do.

Errors stop a command or make its result wrong; warnings change a result that is still a result;
notes are facts to know. The kinds are listed with examples in docs/validate.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from tadpipe.errors import AnnotationError, TadpipeError

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


class Kind(NamedTuple):
    """What all findings of a kind have in common."""

    title: str
    meaning: str
    todo: str


@dataclass(frozen=True)
class Finding:
    """One thing found at one place."""

    severity: Severity
    kind: str  # a key of KINDS
    file: str  # file, folder, store or preset
    place: str  # JSON path, line, or name of a video
    message: str  # what is there, with the value
    remedy: str = ""  # where more can be said than KINDS says

    @property
    def meaning(self) -> str:
        return KINDS[self.kind].meaning

    @property
    def todo(self) -> str:
        return self.remedy or KINDS[self.kind].todo

    def to_mapping(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "severity": self.severity,
            "kind": self.kind,
            "file": self.file,
            "place": self.place,
            "message": self.message,
            "meaning": self.meaning,
            "todo": self.todo,
        }


def from_error(
    kind: str, file: str, place: str, error: TadpipeError, severity: Severity = "error"
) -> Finding:
    """A finding of what a command would stop with."""
    if isinstance(error, AnnotationError) and len(error.defects) == 1:
        where, place = error.defects[0].message, error.defects[0].place or place  # more exact
    else:
        where = "; ".join(line.strip() for line in error.where.splitlines())
    message = f"{error.what} {where}".strip()
    return Finding(severity, kind, file, place, message, error.todo)


_LEFT_OUT = "Commands stop at it; with a public data set they leave the entry out and count it."
_EXTRACT = "Run tadpipe extract for these videos"

KINDS: dict[str, Kind] = {
    # Annotations, class map, splits
    "dataset": Kind(
        "A data set that is not known",
        "Its splits, classes and rules cannot be applied.",
        "See tadpipe list datasets; leave it out for your own videos.",
    ),
    "unreadable-annotations": Kind(
        "Annotations that cannot be read",
        "Nothing can be trained or scored with them.",
        "Mend the file, or name another with --annotations.",
    ),
    "malformed-entry": Kind(
        "Entries that are not as the format wants them",
        _LEFT_OUT,
        "Mend the entry as its message says.",
    ),
    "repeated-key": Kind(
        "Keys that stand twice in one object",
        "JSON keeps the last one only; what the first one said is lost.",
        "Unite the two.",
    ),
    "repeated-video": Kind(
        "Videos that occur twice",
        "JSON keeps the last one only: the actions of the first are lost, and in two splits it "
        "would be trained and tested on.",
        "Unite the two, or rename one.",
    ),
    "empty-segment": Kind(
        "Segments that do not start before they end",
        f"No action has such times. {_LEFT_OUT}",
        "Swap the ends, or remove the entry.",
    ),
    "negative-time": Kind(
        "Segments that start before the video",
        f"Times count from the video's start. {_LEFT_OUT}",
        "Correct the start.",
    ),
    "segment-beyond-duration": Kind(
        "Segments that reach beyond the stated duration",
        "No feature lies there: training drops or cuts the action, scoring counts it as missed. "
        "The times may be those of another cut of the video.",
        "Correct the segment or the duration; compare with the video.",
    ),
    "repeated-segment": Kind(
        "Segments that are annotated twice",
        "Same video, times and label: some protocols count both, and one of them is missed.",
        "Remove one.",
    ),
    "several-labels": Kind(
        "Segments with several labels",
        "The same times stand under two labels. Both are trained and scored; suppression across "
        "classes (nms.multiclass = false) would keep only one.",
        "Leave it if both are true; else remove the wrong one.",
    ),
    "label-id": Kind(
        "label_id is no one-to-one numbering of the labels",
        "Class numbers follow label_id; mixed ones train a class on another's actions.",
        "Give every label one number of its own.",
    ),
    "class-map": Kind(
        "A class map that cannot be used",
        "It gives the order of the classes where the annotations have no label_id.",
        "Write every class once, one name per line.",
    ),
    "label-not-in-class-map": Kind(
        "Labels that the class map does not have",
        "Commands stop: an action of this label has no class number.",
        "Add the label to the class map, or rename it in the annotations.",
    ),
    "class-map-order": Kind(
        "The class map and label_id disagree",
        "label_id counts and the class map is not read; tools that read it number otherwise.",
        "Make both say the same, or remove the class map.",
    ),
    "labels-alike": Kind(
        "Labels that differ in spelling only",
        "They are trained and scored as classes of their own.",
        "Spell them alike.",
    ),
    "too-many-classes": Kind(
        "More labels than the data set has classes",
        "The additional labels are trained as classes and lower the mean over classes.",
        "Check the labels, or leave --dataset out.",
    ),
    "empty-split": Kind(
        "A split without videos, or none that can be told",
        "Training or scoring stops here.",
        "Name the subsets with --subset, --test-subset and --val-subset.",
    ),
    "no-ground-truth": Kind(
        "A split without any action",
        "There is nothing to learn from, or nothing to score against.",
        "Annotate it, or name another subset.",
    ),
    "no-test-subset": Kind(
        "Nothing is held out",
        "The run ends without a score on videos it has not seen.",
        'Give some videos "subset": "test".',
    ),
    "unused-subset": Kind(
        "Subsets that no command takes by itself",
        "Their videos are neither trained nor scored on.",
        "Name them with --subset, --test-subset or --val-subset, or correct the spelling.",
    ),
    "no-actions": Kind(
        "Training videos without any action",
        "They teach background only. Fine if nothing happens in them, harmful if nobody looked.",
        "Check that they are annotated.",
    ),
    "untrained-class": Kind(
        "Classes that are tested but never trained",
        "Their average precision is 0 whatever the detector, and lowers the mean.",
        "Move a video with this label to the training split, or leave the label out.",
    ),
    "leak-name": Kind(
        "Videos of one name in two splits",
        "If they are the same video, the score is of what was trained on.",
        "Compare the two; put both into one split, or rename one.",
    ),
    "names-alike": Kind(
        "Videos of one split whose names differ in suffix or case only",
        "If they are the same video, its actions are trained or scored twice.",
        "Unite the two, or rename one.",
    ),
    "same-actions": Kind(
        "Videos with exactly the same actions",
        "Same length, same times, same labels: one video under two names, or labels copied to the "
        "wrong one. In two splits the score is of what was trained on.",
        "Compare the two; remove one, or correct its labels.",
    ),
    "leak-content": Kind(
        "The same video in two splits",
        "Files or features are equal byte for byte: the score is of what was trained on.",
        "Remove one of them from the annotations.",
    ),
    "same-content": Kind(
        "The same video under two names",
        "It is extracted once, but trained or scored twice.",
        "Remove one of them.",
    ),
    "blocked-video": Kind(
        "Videos on the data set's block list",
        "Protocols that use the list leave them out of the score; others count them.",
        "State the protocol with every result.",
    ),
    # Videos
    "no-videos": Kind(
        "The videos cannot be found",
        "There is nothing to extract or to compare with.",
        "Name the folder with --videos, or set `videos` in tadpipe.toml.",
    ),
    "missing-video": Kind(
        "Annotated videos without a file",
        "They get no features; actions of a test video all count as missed.",
        "Get the file or rename it; names are file names without their suffix.",
    ),
    "unreadable-video": Kind(
        "Files that are no readable video",
        "Extraction leaves them out and ends with exit code 3.",
        "Get the file again, or re-encode it.",
    ),
    "truncated-video": Kind(
        "Files that end early",
        "The rest of the video is not there; extract leaves such files out unless told to keep "
        "what there is.",
        "Get the file again, or use extract --on-truncated keep.",
    ),
    "short-video": Kind(
        "Videos shorter than one snippet",
        "They have too few frames for a single feature row.",
        "Leave them out, or use a shorter --clip-len.",
    ),
    "duration-contradicts": Kind(
        "Durations that contradict the file",
        "The labels may belong to another cut or speed of the video.",
        "Correct the duration, and compare some segments with the video.",
    ),
    "fps-contradicts": Kind(
        "Frame rates that contradict the file",
        "Features use the file's own time stamps, but labels made by frame number and this rate "
        "are shifted.",
        "Correct fps; if segments were made from frame numbers, convert them again.",
    ),
    "segment-beyond-file": Kind(
        "Segments that reach beyond the file's end",
        "The video has no pictures there, so the action cannot be found.",
        "Correct the segment, or get the whole video.",
    ),
    "unannotated-video": Kind(
        "Video files without annotations",
        "They are extracted but neither trained nor scored on.",
        "Leave them, or move them elsewhere to save time.",
    ),
    # Features, preset, class scores
    "store": Kind(
        "A feature store that cannot be used",
        "Training and detection cannot read it.",
        "Check --features.",
    ),
    "damaged-features": Kind(
        "Damaged features",
        "What was written is not what is there; reading stops or gives wrong numbers.",
        "tadpipe store verify --drop-damaged, then extract: it makes exactly these again.",
    ),
    "odd-features": Kind(
        "Features unlike all others",
        "Their values are far larger or smaller than those of the median video.",
        "Look at the video: black, frozen or damaged pictures do that.",
    ),
    "constant-features": Kind(
        "Features that do not change",
        "Every row looked at is the same, as of an empty or failed extraction: nothing can be "
        "found there.",
        f"{_EXTRACT} again, or leave them out.",
    ),
    "nan-rows": Kind(
        "Features with NaN",
        "The loss becomes NaN at the first window that holds one, and training stops.",
        "Extract the video again in --dtype fp32, or leave it out.",
    ),
    "features-length": Kind(
        "Features that do not last as long as their video",
        "Rows and seconds do not fit: detections are shifted, or the end is never seen.",
        "Extract again, or import with the right stride, fps and clip length.",
    ),
    "features-of-another-file": Kind(
        "Features of another file than the one here",
        "The number of frames differs: the file was replaced after the extraction.",
        f"{_EXTRACT} again; a changed file is noticed.",
    ),
    "missing-features": Kind(
        "Annotated videos without features",
        "Training does without them; actions of a test video all count as missed.",
        f"{_EXTRACT}, or leave them out of the annotations.",
    ),
    "no-features": Kind(
        "A split without any features",
        "Names in the store and in the annotations do not meet; the command stops.",
        "Name the right store, or the data set whose files carry a prefix (--dataset).",
    ),
    "only-in-some-stores": Kind(
        "Videos that only some of the stores have",
        "Only videos that all of them have are used.",
        "Extract them into the others.",
    ),
    "unannotated-features": Kind(
        "Features without annotations",
        "They are not used.",
        "Leave them, or annotate the videos.",
    ),
    "other-annotations": Kind(
        "The store keeps other annotations",
        "A command that is given only --features uses the store's copy, not this file.",
        "Run tadpipe extract with --annotations again, or always give --annotations.",
    ),
    "several-kinds": Kind(
        "A store with several kinds of features",
        "Commands ask which one is meant.",
        "Give --backbone and --stride.",
    ),
    "preset": Kind(
        "A preset that cannot be used",
        "Training stops before the first step.",
        "See tadpipe list presets, and the values after --set.",
    ),
    "other-spec": Kind(
        "Features of another kind than the preset expects",
        "Training stops: window and ranges of the preset mean other times on these features.",
        "Use a preset for these features, or extract again.",
    ),
    "class-scores": Kind(
        "Class scores that cannot be used",
        "Detection stops before it labels anything.",
        "Use the score file of this data set.",
    ),
    "unscored-video": Kind(
        "Test videos without class scores",
        "Detection stops; with --skip-unscored they get no detections.",
        "Use the score file of these videos.",
    ),
    "no-class-scores": Kind(
        "A class-agnostic preset without class scores",
        "Actions are found without names and scored under one label.",
        "Give --class-scores, or use a preset with windows.class_agnostic = false.",
    ),
    # Lengths
    "longer-than-window": Kind(
        "Actions longer than the window",
        "Training sees them cut, and never one of which too little fits into a window.",
        "Use a longer model.window_len or a larger --stride; see the suggestion.",
    ),
    "no-level": Kind(
        "Actions that no level answers for",
        "No point of the pyramid lies in the action with its ends in the level's regression "
        "range: the detector is never taught to find it.",
        "Use a smaller --stride or other model.regression_ranges; see the suggestion.",
    ),
    "shorter-than-step": Kind(
        "Actions shorter than a step of the feature grid",
        "Between two rows nothing tells where they start and end.",
        "Use a smaller --stride, or a longer model.window_len where videos are resized.",
    ),
}
