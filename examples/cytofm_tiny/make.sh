#!/bin/bash
# Makes cytofm-tiny anew and judges it on the groups that it never saw; the same with the halves of
# the groups exchanged. About three hours on one core.
#
#   examples/cytofm_tiny/make.sh CRIC OUT
#
# CRIC: folder with images/, images.csv (image, group, …) and points.csv (image, x, y, label), the
# fields of view of CRIC Cervix; OUT: an empty folder.
set -euo pipefail
here=$(realpath "$(dirname "$0")"); cric=$(realpath "$1"); mkdir -p "$2"; cd "$2"
export OMP_NUM_THREADS=1

cytofm tile "$cric/images" -o stores --tile-px 256 --foreground none --slide-mpp 0.25 --pixels lossless
cytofm detect stores
a=g1,g4,g6,g8 b=g2,g3,g5,g7
python "$here/train.py" "$cric" stores cytofm-tiny.safetensors $a  # the file that ships
python "$here/train.py" "$cric" stores exchanged.safetensors $b

judge() {  # FILE GROUPS NAME [more]; own crop: 32 µm, or what the encoder was trained on
  local file=$1 groups=$2 name=$3; shift 3
  for crop in own 18; do
    cytofm evaluate probe stores --points "$cric/points.csv" --groups "$cric/images.csv" \
      --task abnormal --judged "$groups" -o "$name-$crop" --encoder handcrafted --encoder "$file" \
      "$@" $([ $crop = own ] || echo "--crop-um $crop")
  done
}
judge cytofm-tiny.safetensors $b probe --encoder sr-vit-tiny --random-weights
judge exchanged.safetensors $a probe-exchanged
