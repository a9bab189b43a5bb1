#!/usr/bin/env bash
# The pictures of docs/manipulations.md: bash docs/manipulations.sh OUT (some minutes; writes into OUT).
set -e
out=${1:-out/manipulations}
in=docs/images/inputs
go="--seed 0 --no-progress -o $out"
unclip generate "a red apple, 3D" $go
apple=$out/a-red-apple-3d-seed0.png
pictures="$apple $in/alpha.png $in/wide.jpg $in/grey16.png $in/star.gif"

unclip upscale $pictures --size 1024 $go
unclip invert $pictures -o $out/latents.safetensors --no-progress
unclip generate --image-embeds $out/latents.safetensors --grid $go
unclip describe $pictures --top 3 | tee $out/describe.txt
unclip vary $pictures -n 3 --eta 1 --grid $go
unclip blend $pictures --frames 9 $go
unclip blend $in/star.gif "prompt:a blue heart, flat" --frames 7 --gif $go
unclip blend $apple $in/star.gif "prompt:a blue heart, flat" --weights 1,1,2 $go
unclip diff $pictures --from "a red apple" --to "a green apple" --frames 4 $go
unclip diff $pictures --to "a green apple" --frames 4 $go
unclip generate "an airplane, flat" "smiling face, 3D" $go
unclip diff $out/an-airplane-flat-seed0.png --from "an airplane, flat" --to "an airplane, 3D" --frames 7 $go
unclip diff $out/smiling-face-3d-seed0.png --to "crying face" --frames 7 $go
unclip diff $apple --from "a red apple" --to "a green apple" --from "an apple, 3D" --to "an apple, flat" --frames 7 $go
for picture in $pictures; do
    unclip edit $picture "a yellow star, flat" --outpaint 0.3 --image-weight 0.8 $go
    unclip edit $picture "a green apple, flat" --strength 0.4 $go
done
unclip edit $in/alpha.png "a red balloon, flat" --mask $in/alpha-mask.png $go
unclip edit $in/alpha.png "a red balloon, flat" $go
