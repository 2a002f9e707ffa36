#!/bin/bash
# Makes cytofm-tiny anew and judges it on the groups that it never saw. About 35 minutes.
#
#   examples/cytofm_tiny/make.sh CRIC OUT
#
# CRIC: folder with images/, images.csv (image, group, …) and points.csv (image, x, y, label), the
# fields of view of CRIC Cervix; OUT: an empty folder.
set -euo pipefail
here=$(realpath "$(dirname "$0")"); cric=$(realpath "$1"); mkdir -p "$2"; cd "$2"
export OMP_NUM_THREADS=1

cytofm tile "$cric/images" -o stores --tile-px 256 --foreground none --mpp 0.25 --pixels lossless
cytofm detect stores
python "$here/train.py" "$cric" stores cytofm-tiny.safetensors

for crop in own 18; do  # own: 32 µm, or what the encoder was trained on; 18 µm for all
  cytofm evaluate probe stores --points "$cric/points.csv" --groups "$cric/images.csv" \
    --task abnormal --judged g2,g3,g5,g7 -o "probe-$crop" \
    --encoder handcrafted --encoder cytofm-tiny.safetensors --encoder sr-vit-tiny --random-weights \
    $([ $crop = own ] || echo "--crop-um $crop")
done
