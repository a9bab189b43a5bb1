"""Probability and nothing else: schedules, prediction types, losses, likelihood, guidance, sampling."""

from unclip.diffusion.denoiser import Conditions, Denoiser, Posterior, Relay
from unclip.diffusion.gaussian import gaussian_kl, q_posterior, reverse_log_variances
from unclip.diffusion.guidance import Guided, classifier_free
from unclip.diffusion.inpainting import inpaint
from unclip.diffusion.inversion import InverseScheduler, invert
from unclip.diffusion.likelihood import BitsPerDim, bits_per_dim, prior_kl, vlb_term, vlb_terms
from unclip.diffusion.loss import HybridLoss, MinSNRLoss, SharpLoss, SimpleLoss
from unclip.diffusion.prediction import PREDICTION_TYPES, add_noise, from_x0, target, to_x0
from unclip.diffusion.sample import denoise, first_step, initial_noise, noise_level, noise_to_step, prepared
from unclip.diffusion.schedule import DiscreteSchedule, FlowSchedule, Schedule, make_schedule
from unclip.diffusion.unclip_scheduler import UnCLIPScheduler

__all__ = [
    "PREDICTION_TYPES",
    "BitsPerDim",
    "Conditions",
    "Denoiser",
    "DiscreteSchedule",
    "FlowSchedule",
    "Guided",
    "HybridLoss",
    "InverseScheduler",
    "MinSNRLoss",
    "Posterior",
    "Relay",
    "Schedule",
    "SharpLoss",
    "SimpleLoss",
    "UnCLIPScheduler",
    "add_noise",
    "bits_per_dim",
    "classifier_free",
    "denoise",
    "first_step",
    "from_x0",
    "gaussian_kl",
    "initial_noise",
    "inpaint",
    "invert",
    "make_schedule",
    "noise_level",
    "noise_to_step",
    "prepared",
    "prior_kl",
    "q_posterior",
    "reverse_log_variances",
    "target",
    "to_x0",
    "vlb_term",
    "vlb_terms",
]
