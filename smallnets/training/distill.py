"""Knowledge distillation (Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network")."""

import torch.nn.functional as F
from torch import Tensor

from smallnets.errors import UserError


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    targets: Tensor,
    temperature: float,
    weight: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """(1 - weight) * cross-entropy(student, targets) + weight * T^2 * KL(teacher at T || student at T).

    Means over the batch, in nats. The factor T^2 keeps the size of the second term's gradient when T changes
    (section 2 of the paper). The divergence differs from the paper's cross-entropy with soft targets by the teacher's
    entropy, which has no gradient, and is 0 when the student agrees. No gradient flows into the teacher.

    Args:
        student_logits: (N, classes).
        teacher_logits: (N, classes).
        targets: class numbers, int64 (N,), or shares, float (N, classes).
        temperature: T, above 0.
        weight: the teacher's share, 0 (only the labels) to 1 (only the teacher).
        label_smoothing: of the targets; the teacher's outputs are not smoothed.

    Raises:
        UserError: a number out of its range, or logits of different shapes.
    """
    if not temperature > 0:
        raise UserError(f"temperature must be above 0, got {temperature}")
    if not 0 <= weight <= 1:
        raise UserError(f"weight, the teacher's share, must lie in 0..1, got {weight}")
    if student_logits.shape != teacher_logits.shape:
        raise UserError(
            f"teacher and student must have the same classes: {tuple(teacher_logits.shape)} logits"
            f" against {tuple(student_logits.shape)}"
        )
    hard = F.cross_entropy(student_logits, targets, label_smoothing=label_smoothing)
    teacher = F.log_softmax(teacher_logits.detach() / temperature, dim=1)
    student = F.log_softmax(student_logits / temperature, dim=1)
    soft = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return (1 - weight) * hard + weight * temperature**2 * soft
