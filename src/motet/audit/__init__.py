"""The auditor: attacks on what really leaves the sites, with and without defences."""

from motet.audit.defences import add_noise, clip, mirrored, soteria, sparsify
from motet.audit.generators import (
    Generator,
    GeneratorSpec,
    trained_generator,
    untrained_generator,
)
from motet.audit.inversion import ATTACKS as INVERSIONS
from motet.audit.inversion import invert
from motet.audit.leaks import analytic, analytic_picture, infer_labels
from motet.audit.matching import Inversion
from motet.audit.membership import (
    Membership,
    calibrated_scores,
    figures,
    judge,
    likelihood_scores,
    losses,
    roc,
    threshold_scores,
)
from motet.audit.options import ATTACKS, AuditOptions, DefenceChoice
from motet.audit.outcome import AuditResult, Cell, Gap, Shot
from motet.audit.report import markdown, page, write_audit
from motet.audit.representations import fit, pictures_from, ranks_among
from motet.audit.run import audit
from motet.audit.scores import chance, label_recovery, matched, psnr, ssim
from motet.audit.tap import Enough, Seen, Tap
from motet.audit.upload import (
    Defence,
    Local,
    Upload,
    gradients_of,
    gradients_of_update,
    upload_of,
)

__all__ = [
    "ATTACKS",
    "INVERSIONS",
    "AuditOptions",
    "AuditResult",
    "Cell",
    "Defence",
    "DefenceChoice",
    "Enough",
    "Gap",
    "Generator",
    "GeneratorSpec",
    "Inversion",
    "Local",
    "Membership",
    "Seen",
    "Shot",
    "Tap",
    "Upload",
    "add_noise",
    "analytic",
    "analytic_picture",
    "audit",
    "calibrated_scores",
    "chance",
    "clip",
    "figures",
    "fit",
    "gradients_of",
    "gradients_of_update",
    "infer_labels",
    "invert",
    "judge",
    "label_recovery",
    "likelihood_scores",
    "losses",
    "markdown",
    "matched",
    "mirrored",
    "page",
    "pictures_from",
    "psnr",
    "ranks_among",
    "roc",
    "soteria",
    "sparsify",
    "ssim",
    "threshold_scores",
    "trained_generator",
    "untrained_generator",
    "upload_of",
    "write_audit",
]
