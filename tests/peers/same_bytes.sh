#!/bin/sh
# Trains every method, every selector and every PET kind on the tiny base and a tiny stream with two
# builds of conpet-train, same seed and threads, and compares the bundles byte by byte.
#
# usage: same_bytes.sh OLD_TRAIN NEW_TRAIN
#
# A new method, selector or kind is added to the lists below. One line is printed for each pair; the exit
# code is 1 if any two differ or a training fails.
set -eu
[ $# -eq 2 ] || { echo "usage: $0 OLD_TRAIN NEW_TRAIN" >&2; exit 2; }
old=$(realpath "$1")
new=$(realpath "$2")
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"

rows() { # FILE, WORDS A, WORDS B, LABEL A, LABEL B, FRAMES
    for frame in $6; do
        for word in $2; do echo "{\"text\":\"$frame $word now\",\"label\":\"$4\"}"; done
        for word in $3; do echo "{\"text\":\"$frame $word now\",\"label\":\"$5\"}"; done
    done > "$1"
}
labelled() { # STREAM, TASK, WORDS A, WORDS B, LABEL A, LABEL B
    mkdir -p "$1/$2"
    rows "$1/$2/train.jsonl" "$3" "$4" "$5" "$6" "the my one"
    rows "$1/$2/valid.jsonl" "$3" "$4" "$5" "$6" "his"
    rows "$1/$2/test.jsonl" "$3" "$4" "$5" "$6" "our"
}
for stream in labels mixed; do
    labelled $stream colour "fire blood rose" "sky sea ink" red blue
    labelled $stream size "house whale tower" "mouse coin seed" big small
done
labelled labels taste "sugar honey cake" "lemon salt vinegar" sweet sour
mkdir -p mixed/echo
for split in train valid test; do
    for verb in list show open close; do
        for word in file day number; do
            echo "{\"prompt\":\"please $verb a $word\",\"completion\":\" $verb\"}"
        done
    done > "mixed/echo/$split.jsonl"
done
cat > mixed/stream.json <<'JSON'
{"tasks":["colour",{"name":"size","template":"I ask: {input}"},{"name":"echo","template":"{input} =","max_answer":4}]}
JSON
"$old" tiny-base base.gguf

usual="--trunk 1 --epochs 2 --batch 8 --lr 5e-3 --threads 2 --replay-limit 5 --selector-steps 50 --score last"
wrong=0
compare() { # NAME, then arguments of conpet-train, @ for the bundle
    name=$1
    shift
    for build in old new; do
        program=$old
        [ $build = old ] || program=$new
        rm -rf "$build.cpb" "$build.work" "$build.report"
        if ! "$program" $(echo "$*" | sed "s/@/$build.cpb/g") > "$build.out" 2>&1; then
            echo "FAILED  $name ($build): $(tail -n 1 "$build.out")"
            wrong=1
            return
        fi
    done
    if cmp -s old.cpb new.cpb; then
        echo "equal   $name"
    else
        echo "DIFFERS $name"
        wrong=1
    fi
}

for method in per-task sequential joint ewc lwf o-lora lae emr ea-emr crl static-emr static-ea-emr static-crl; do
    compare "method $method" "stream labels -m base.gguf -b @ $usual --method $method"
done
for select in herding reservoir random; do
    compare "method emr, $select" "stream labels -m base.gguf -b @ $usual --method emr --memory 2 --select $select"
done
compare "method static-emr, memory 1" "stream labels -m base.gguf -b @ $usual --method static-emr --memory 1"
compare "method lae, offline" "stream labels -m base.gguf -b @ $usual --method lae --lae-experts offline"
for selector in lda ridge centroid linear mlp conpet uniform task; do
    compare "selector $selector" "stream mixed -m base.gguf -b @ $usual --selector $selector"
done
compare "selector ridge, random features" "stream mixed -m base.gguf -b @ $usual --selector ridge --random-features 32"
compare "selector centroid, plain" "stream mixed -m base.gguf -b @ $usual --selector centroid --centroid plain"
compare "selector lda, without n-grams" "stream mixed -m base.gguf -b @ $usual --ngram-weight 0 --top-k 3 --margin 0.9"
compare "selector lda, several features" "stream mixed -m base.gguf -b @ $usual --selector-feature 0:mean+trunk:last"
for pet in lora lora:r=2+bias sparse:n=200,rule=random sparse:n=200,rule=magnitude sparse:n=200,rule=fisher ia3 bias \
    adapter:n=4 adapter:n=4,form=parallel prefix:n=2 prefix:n=2,mid=4; do
    compare "pet $pet" "stream mixed -m base.gguf -b @ $usual --pet $pet"
done
compare "pet prompt" "stream mixed -m base.gguf -b @ $(echo "$usual" | sed "s/--trunk 1/--trunk 0/") --pet prompt:n=3"
compare "pet by budget" "stream mixed -m base.gguf -b @ $usual --params 1%"
for head in choice choice-mean; do
    compare "head $head" "stream labels -m base.gguf -b @ $usual --head $head"
done
compare "trunk of a third, dropout, constant rate" \
    "stream mixed -m base.gguf -b @ --epochs 1 --threads 2 --dropout 0.1 --schedule constant --weights quant"
compare "preset conpet-paper" "stream labels -m base.gguf -b @ --preset conpet-paper --epochs 1 --replay-limit 5 --threads 2"

"$old" stream mixed -m base.gguf -b two.cpb $usual --tasks 2 > two.out 2>&1
for build in old new; do
    program=$old
    [ $build = old ] || program=$new
    cp two.cpb $build.cpb
    rm -rf $build.work
    "$program" add mixed/echo -m base.gguf -b $build.cpb --epochs 2 --batch 8 --lr 5e-3 --threads 2 > $build.out 2>&1
done
if cmp -s old.cpb new.cpb; then echo "equal   add"; else echo "DIFFERS add"; wrong=1; fi
exit $wrong
