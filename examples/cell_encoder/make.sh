#!/bin/bash
# Pretrains an encoder of single cells, and judges it on groups that it never saw. About 40 minutes
# on two cores.
#
#   examples/cell_encoder/make.sh CRIC OUT
#
# CRIC: folder with images/, images.csv (image, group, …) and points.csv (image, x, y, label), the
# fields of view of CRIC Cervix; OUT: an empty folder.
set -euo pipefail
cric=$(realpath "$1"); mkdir -p "$2"; cd "$2"
export OMP_NUM_THREADS=1

cytofm tile "$cric/images" -o stores --tile-px 512 --mpp 0.25 --pixels lossless
cytofm detect stores

# Two halves of the groups: an encoder that saw only the first is judged on the second.
mkdir -p half-a half-b
while IFS=, read -r image group _; do
  case $group in
    g1|g4|g6|g8) ln -sfn "$PWD/stores/${image%.*}.zarr" half-a/ ;;
    g2|g3|g5|g7) ln -sfn "$PWD/stores/${image%.*}.zarr" half-b/ ;;
  esac
done < "$cric/images.csv"

pretrain() {  # STORES RUN
  cytofm pretrain "$1" -o "$2" --encoder sr-vit-tiny --method distill --unit cell \
    --cell-um 28 --global-px 64 --global-scale 0.35,0.47 --aspect 0.95,1.05 \
    --colour-strength 0.4 --fill none --per-slide 16 --batch 128 --steps 400 --set clip=3 \
    --seed 0 --pooling cls+mean --licence Apache-2.0 --device cpu --threads 1 --no-progress
}
pretrain half-a run-half-a &
pretrain stores run-all
wait

for crop in own 18; do  # own: 32 µm, or what the encoder was trained on; 18 µm for all
  cytofm evaluate probe half-b --points "$cric/points.csv" --groups "$cric/images.csv" \
    --task abnormal --encoder handcrafted --encoder run-half-a/encoder.safetensors \
    --encoder sr-vit-tiny --random-weights -o "probe-$crop" \
    $([ $crop = own ] || echo "--crop-um $crop")
done
