#!/bin/sh
# Copyright (c) 2026, The nemo_vtb authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
#
# The whole job once, on the embedded default: train, evaluate, answer, export. Called by `make quickstart`.
# Arguments are passed on to the training, for example: tools/quickstart.sh trainer.max_steps=50
set -eu

cd "$(dirname "$0")/.."
OUT=runs/quickstart
LOG=$OUT/quickstart.log
mkdir -p "$OUT"
: >"$LOG"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

step() { # title, command ...; shows and keeps the output, stops the whole script where the command fails
    title=$1
    shift
    printf '\n=== %s\n$ %s\n' "$title" "$*" | tee -a "$LOG"
    started=$(date +%s)
    # a pipe would hide the exit status of the command
    { "$@" 2>&1 && echo 0 >"$OUT/.status" || echo $? >"$OUT/.status"; } | tee -a "$LOG"
    status=$(cat "$OUT/.status")
    rm -f "$OUT/.status"
    if [ "$status" -ne 0 ]; then
        printf '\nERROR: "%s" ended with exit code %s; its output is in %s\n' "$title" "$status" "$LOG" >&2
        exit "$status"
    fi
    printf -- '--- done in %s s\n' "$(($(date +%s) - started))" | tee -a "$LOG"
}

PY=.venv/bin/python
begun=$(date +%s)
DEMO=asset:demo-corpus OPEN=asset:open-dialogues
step "1/4 Joint training on the four kinds of data" "$PY" examples/speechllm_joint_sft.py --config-name quickstart "$@"
# beams: greedy answers of so small an LLM go round in circles; chosen on validation data (docs/experiments.md, 11)
step "2/4 Evaluation beside the base LLM, on speakers and sentences that it never heard" "$PY" examples/speechllm_eval.py \
    record=true num_beams=4 no_repeat_ngram_size=4 "data=[$DEMO/asr_ast.test.jsonl,$OPEN/asr_ast.test.jsonl,$DEMO/speech_qa.test.jsonl,$OPEN/speech_qa.test.jsonl,\
$DEMO/mixed_modal.test.jsonl,$OPEN/mixed_modal.test.jsonl,$DEMO/text.test.jsonl,$DEMO/text_reference.test.jsonl]"
step "3/4 Answers to people whom it never heard" "$PY" examples/speechllm_generate.py num_beams=4 no_repeat_ngram_size=4 \
    "audio=[$OPEN/audio/librivox-sense_and_sensibility_01_austen_64kb-0880.wav,$OPEN/audio/ljspeech-LJ001-0002.wav,\
$OPEN/audio/jfk-jfk.wav,$DEMO/wav/command-test-00001.wav]"
step "4/4 Export to one .nemo file" "$PY" examples/speechllm_export.py output="$OUT/export/quickstart.nemo" overwrite=true

cat <<END

=== Done in $((($(date +%s) - begun) / 60)) minutes. What was made, in $OUT:
$(find "$OUT" -maxdepth 2 -type f ! -name '.*' | sort | sed 's/^/  /' | head -n 40)

What to do next:
  $PY examples/speechllm_joint_sft.py --help          every setting
  $PY examples/speechllm_joint_sft.py --config-name quickstart name=longer trainer.max_steps=800   a longer run
  $PY examples/speechllm_generate.py audio=[your.wav]   a recording of your own
  .venv/bin/vtb chat $OUT                            talk with it, typed and with recordings (\`vtb web\`: in the browser)
  .venv/bin/vtb report llm $OUT/checkpoints/quickstart.nemo   one page: what it hears, what it kept, where it fails
  .venv/bin/vtb inspect --help                        see how a conversation is rendered
  make demo-long                                      the larger model, about an hour, resumable
END
