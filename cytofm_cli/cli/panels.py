"""Under which heading of `--help` a setting stands."""

from __future__ import annotations

from typing import Final

FILES: Final = "Input and output"
RUNNING: Final = "Running"
OUTPUT: Final = "What is printed"
# The headings that end every help, in this order.
LAST: Final = (RUNNING, OUTPUT)

REGIONS: Final = "regions region_include region_exclude region_label region_unit region_origin"

# Section of the settings: heading: settings. What is not named stands under the first heading.
PANELS: Final[dict[str, dict[str, str]]] = {
    "run": {
        RUNNING: "config print_config dry_run overwrite shard workers gpus threads timeout_s "
        "fail_fast scratch on",
        OUTPUT: "json quiet verbose no_progress",
    },
    "tile": {
        "Tiles": "tile_px mpp slide_mpp mpp_tolerance stride_px",
        "Which tiles": "foreground min_foreground select max_tiles seed",
        "Regions": f"{REGIONS} region_rule",
        "Quality": "min_focus max_pen max_edge max_clump max_saturation max_blank",
        "Pixels": "pixels jpeg_quality focus reader",
    },
    "detect": {
        "Detector": "detector weights",
        "Regions": REGIONS,
        FILES: "slides nuclei",
        RUNNING: "device",
    },
    "embed": {
        "Encoder": "encoder weights weights_key download random_weights input_px resize_px mean "
        "std pooling arch_arg seed",
        "Rows of a bag": "unit detector cell_um dtype",
        "Regions": f"{REGIONS} region_rule",
        FILES: "slides",
        RUNNING: "device batch_size",
    },
    "simulate": {
        "Cohort": "preset patients slides_per_patient abnormal_share seed",
        "Slides": "size_px covered planes plane_um format",
    },
    "pretrain": {
        "Method and encoder": "method encoder name ncp h h_anneal irpe init lora_rank lora_alpha "
        "lora_targets pooling licence",
        "Data": "detector unit cell_um balance per_slide",
        "Training": "steps epochs batch lr seed accumulate amp parallel",
        "Watching": "log_every save_every keep_every probe probe_groups probe_um probe_every "
        "attention_every",
        RUNNING: "device compile checkpoint_activations threads",
    },
    "views": {
        "Views": "recipe preset colours colour_strength stain_strength stain_of aspect patch_px "
        "global_px global_scale local_scale n_local local_px teacher_px",
        "Nuclei": "keep keep_fraction region radius_um fill block_px redraw feather_um "
        "clean_probability centred centre_jitter without_nuclei",
    },
    "evaluate": {
        "What is judged": "unit crop_um slide_mpp tile_label task positive judged pooling",
        "Probes": "k temperature balanced folds inner_folds shots draws replicates seed",
        FILES: "slides",
        RUNNING: "device batch_size threads",
    },
    "evaluate_robustness": {
        "What is judged": "unit crop_um detector max_places slide_mpp pooling",
        "Conditions": "perturb k seed",
        FILES: "slides",
        RUNNING: "device batch_size threads",
    },
    "evaluate_retention": {
        "What is judged": "crop_um slide_mpp task positive judged pooling",
        "Conditions": "perturb",
        "Probes": "k temperature balanced folds inner_folds swaps seed",
        FILES: "slides",
        RUNNING: "device batch_size threads",
    },
    "report": {"Page": "title cells cell_um pictures", FILES: "slides"},
    "gallery": {
        "Which cells": "by top per_slide min_probability lowest",
        "Of what": "detector encoder run cell_um",
        FILES: "slides",
    },
    "export": {
        "Files": "to layout",
        "Bags": "encoder unit",
        "Nuclei": "detector run classes measure origin",
        FILES: "slides",
    },
    "mil": {
        "Data": "encoder unit bag_table label group classes positive allow_missing allow_mixed",
        "Head and training": "method preset epochs lr weight_decay patience bag_loss vpu seeds "
        "seed retrain",
        "Splits": "protocol folds inner_folds repeats test_fraction splits",
        "Judging": "threshold specificity calibrate bootstrap",
        RUNNING: "device workers",
    },
    "mil_score": {
        "Features": "encoder bag_table groups allow_mixed",
        FILES: "attention geojson",
        RUNNING: "device",
    },
    "mil_compare": {"Judging": "replicates seed"},
    "cells": {
        "Classes": "model ordinal order task normal distance class_weights hidden penalty",
        "Training of lora": "lora_rank epochs lr epoch_cells",
        "Crops": "crop_um slide_mpp pooling",
        "Judging": "folds inner_folds calibrate abstain outlier replicates seed",
        FILES: "slides",
        RUNNING: "device batch_size threads",
    },
    "cells_apply": {
        "Classes": "detector groups abstain",
        FILES: "weights slides",
        RUNNING: "reuse device batch_size",
    },
    "attention": {
        "Networks": "dense control input_px",
        "Images": "unit detector cell_um images shown seed",
        "Intervals": "replicates",
        FILES: "slides",
        RUNNING: "device batch_size",
    },
    "heatmap": {
        "Values": "what groups allow_mixed",
        "Pictures": "to raw colours mpp cells",
        RUNNING: "device",
    },
    "generate": {
        "Networks": "preset size_px vae_base vae_blocks depth width heads patch aligned_depth "
        "projector licence",
        "Condition and alignment": "condition encoder align dropped",
        "Data": "unit cell_um detector flips balance",
        "Training": "steps epochs batch lr lr_end warmup clip ema seed accumulate amp",
        "Losses": "times kl perceptual gan align_vae align_sit",
        "Watching": "log_every save_every keep_every",
        RUNNING: "device threads",
    },
    "generate_sample": {
        "Images": "n sampler steps guidance interval ema vae_ema seed",
        "Condition": "encoder detector side_um unit",
        RUNNING: "device batch_size",
    },
    "generate_evaluate": {
        "Measures": "encoder n k density_k qualities",
        "Images": "sampler steps guidance interval vae_ema seed",
        RUNNING: "device batch_size",
    },
    "cells_count": {"Counting": "run min_probability top_k"},
}

# The other headings, in the order in which they stand.
FIRST: Final = tuple(dict.fromkeys([FILES, *(title for of in PANELS.values() for title in of)]))


def panel_of(section: str, setting: str) -> str:
    """Return the heading of a setting."""
    panels = PANELS.get(section, {})
    for title, names in panels.items():
        if setting in names.split():
            return title
    return next(iter(panels), "Settings")
