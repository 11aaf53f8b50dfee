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
"""The rows of the fault matrix: what goes wrong, the tests of `make test` that prove it, and what is still open.

What `make torture` does to a row is found by its key (`trials.Experiment.row`).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A row.

    Args:
        id: R1 to S10.
        fault: What goes wrong, and what must be.
        tests: Node ids in `make test`.
        open: What is not proved, and why.
    """

    id: str
    fault: str
    tests: tuple[str, ...] = ()
    open: str = ''


GROUPS = {
    'R': 'Resuming',
    'D': 'Broken data',
    'C': 'Checkpoints',
    'P': 'Signals and hangs',
    'N': 'Numbers',
    'S': 'Files of strangers',
    'soak': 'Everything at once',
}
"""First letters of a row -> heading."""

_SAMPLER, _STATE = 'tests/data/test_sampler.py::', 'tests/training/test_run_state.py::'
_SAVES, _LAST = 'tests/training/test_failed_saves.py::', 'tests/training/test_interrupted.py::'
_STOP, _NEMO = 'tests/training/test_stop_signals.py::', 'tests/checkpoint/test_nemo_file.py::'
_BLENDER, _INDEX = 'tests/model/test_blender.py::', 'tests/data/test_index_integrity.py::'
_CORPUS = 'tests/security/test_hostile_files.py::test_a_part_of_the_corpus_is_refused_or_harmless'

ROWS = (
    Row('R1', 'killed at a random moment: the state at the end and every loss are those of the undisturbed run'),
    Row('R2', 'ten kills within one run'),
    Row('R3', 'killed at eight named places of a save', (f'{_SAVES}test_killed_in_a_save',)),
    Row(
        'R4',
        'resumed over the border of an epoch: each conversation once in each epoch',
        (
            f'{_SAMPLER}test_each_conversation_comes_once_per_epoch',
            f'{_SAMPLER}test_a_plan_resumes_at_any_row_also_twice',
            f'{_STATE}test_lightning_epochs_and_validation_do_not_disturb',
        ),
    ),
    Row(
        'R5',
        'ended at each place that saves, with one and several rows in a global batch',
        (
            f'{_STATE}test_the_run_ends_when_the_data_is_used_up',
            f'{_BLENDER}test_a_checkpoint_within_a_global_batch_is_that_of_its_beginning',
        ),
    ),
    Row(
        'R6',
        'numbers of loader processes and of batches before the save: the same rows follow',
        (
            f'{_STATE}test_lightning_resumes_exactly_at_every_checkpoint',
            f'{_STATE}test_resume_is_exact_also_with_faults',
            'tests/data/test_datamodule.py::test_loader_processes_change_nothing',
        ),
    ),
    Row(
        'R7',
        'other ranks, rows or settings: adopted where that is exact, else refused by name',
        (
            f'{_SAMPLER}test_a_sampler_resumes_on_another_number_of_ranks',
            f'{_SAMPLER}test_a_changed_plan_is_refused_by_name',
            'tests/training/test_changed_settings.py::test_each_is_refused_by_name',
        ),
    ),
    Row(
        'R8',
        'other data: refused by name before the first step',
        (
            f'{_SAMPLER}test_changed_files_are_refused_by_name_or_adopted',
            f'{_STATE}test_a_changed_manifest_is_refused_before_the_first_step',
            f'{_INDEX}test_other_recordings_are_refused_at_a_resume_also_with_a_new_index',
        ),
    ),
    Row(
        'R9',
        'the curve is that of earlier versions, to the bit on a CPU',
        ('tests/golden/test_golden.py::test_a_run_is_what_it_was',),
        'the curve in bfloat16 needs a GPU',
    ),
    Row(
        'R10',
        'the number of ranks and of accumulated rows does not change what is learned',
        (
            f'{_BLENDER}test_the_gradient_does_not_depend_on_how_rows_are_split',
            f'{_SAMPLER}test_the_global_batch_is_the_same_for_any_number_of_ranks',
            'tests/parallel/test_fully_sharded.py::test_two_ranks_with_half_of_the_llm_each_train_as_one',
        ),
    ),
    Row(
        'R11',
        'neighbours in a row, padding and order do not change a loss',
        (
            f'{_BLENDER}test_packed_equals_each_alone',
            'tests/backbone/test_base.py::test_nothing_is_seen_across_borders_or_ahead',
        ),
    ),
    Row(
        'R12',
        'a second resume, and a resume of a resume',
        (f'{_STATE}test_a_second_fit_goes_on', f'{_SAMPLER}test_a_plan_resumes_at_any_row_also_twice'),
    ),
    Row(
        'R13',
        'LoRA saved, merged, read again and exported answers the same',
        (
            'tests/export/test_parity.py::test_every_form_answers_the_same',
            'tests/backbone/test_hf.py::test_lora_state_is_pefts_and_loads_back',
        ),
    ),
    Row('R14', 'killed as a user starts it: the script, its imports and NeMo\'s exp_manager'),
    Row(
        'D',
        'broken input harms itself alone: the 39 kinds of the matrix and 113 more',
        ('tests/data/test_torture.py::test_one_of_each_kind_harms_itself_alone',),
    ),
    Row(
        'C1',
        'disk full',
        (
            f'{_SAVES}test_a_disk_that_is_full_at_any_place',
            f'{_LAST}test_a_full_disk_costs_no_more_than_its_checkpoints',
        ),
    ),
    Row('C2', 'folder read-only, or removed', (f'{_LAST}test_a_folder_that_is_removed_comes_back',)),
    Row(
        'C3',
        'a bit turns',
        (f'{_LAST}test_random_flips_and_cuts_never_resume', f'{_NEMO}test_a_hundred_bit_flips_and_a_hundred_cuts'),
    ),
    Row('C4', 'a file is cut, or one of a set is deleted', (f'{_LAST}test_a_damaged_shard_falls_back_too',)),
    Row(
        'C5',
        'two jobs in one folder',
        (
            'tests/training/test_run_lock.py::test_a_second_job_is_refused_by_name',
            'tests/training/test_run_lock.py::test_another_host_is_known_by_its_signs_of_life',
        ),
    ),
    Row(
        'C6',
        'a checkpoint or a `.nemo` file of an earlier version',
        (
            'tests/golden/test_golden.py::test_a_checkpoint_made_before_is_gone_on_from',
            f'{_NEMO}test_a_file_of_the_first_version_still_opens',
        ),
    ),
    Row(
        'C7',
        'retention where the newest failed: a verified checkpoint is always left',
        ('tests/checkpoint/test_checkpoint_io.py::test_a_verified_one_is_always_left',),
    ),
    Row(
        'C8',
        'what is written in the background is what is written at once',
        ('tests/parallel/test_fully_sharded.py::test_each_goes_on_from_the_others_checkpoint',),
    ),
    Row(
        'P1',
        'a signal at a rank, at all, at the launcher: no step is lost, exit code 75',
        (f'{_STOP}test_each_signal_costs_no_step_and_the_run_is_the_same',),
    ),
    Row(
        'P2',
        'a second signal; a signal during a save, a validation, the start, a stalled loader',
        (
            f'{_STOP}test_in_a_validation_it_is_completed_first',
            f'{_STOP}test_before_the_first_step_it_ends_at_once',
            f'{_STOP}test_a_second_interrupt_ends_at_once_but_not_one_that_was_passed_on',
        ),
    ),
    Row('P3', 'one process without torch.distributed'),
    Row(
        'P4',
        'the exit code says that work is left, and the scheduler starts the job again (also in P1 to P3)',
        (
            'tests/test_packaging.py::test_sbatch_saves_and_requeues_at_the_time_limit',
            'tests/test_packaging.py::test_sbatch_passes_the_exit_code_of_training_on',
        ),
    ),
    Row(
        'P5',
        'a rank stops, or a loader process dies: the watchdog names it and ends the run',
        (
            'tests/training/test_watchdog.py::test_a_rank_that_does_not_answer_is_missing',
            'tests/data/test_datamodule.py::test_a_killed_loader_process_is_named_with_what_it_read',
        ),
        'a deadlock inside NCCL needs several GPUs',
    ),
    Row(
        'P6',
        'the sbatch file with a scheduler that is played',
        (
            'tests/test_packaging.py::test_sbatch_requeues_what_was_asked_to_end_by_others',
            'tests/test_packaging.py::test_shell_scripts_parse',
        ),
        'a real Slurm is not at hand',
    ),
    Row(
        'N1',
        'NaN or Inf in a loss or a gradient, on one rank: no rank makes the step, nothing of it is saved',
        (
            'tests/parallel/test_left_out_steps.py::test_no_rank_takes_a_step_that_is_not_finite',
            'tests/parallel/test_left_out_steps.py::test_one_process_ends_after_three_in_a_row',
        ),
    ),
    Row(
        'N2',
        'no target in a batch, on one rank or on all',
        ('tests/parallel/test_left_out_steps.py::test_a_batch_without_targets_keeps_training',),
    ),
    Row(
        'N3',
        'memory: no row is longer than `data.max_tokens`, whatever the data holds',
        (
            f'{_SAMPLER}test_shares_hold_over_the_run_and_in_every_window_and_rows_are_full',
            'tests/training/test_forecast.py::test_larger_models_fit_80_gb_with_tensor_parallelism',
        ),
        'running out of memory on a GPU needs a GPU',
    ),
    Row('S', 'the corpus of hostile files of the rows S1 to S9 as a whole', (_CORPUS,)),
    Row(
        'S1',
        'pickles in the place of weights',
        (
            f'{_NEMO}test_a_file_of_a_stranger_runs_no_code',
            'tests/checkpoint/test_checkpoint_io.py::test_a_list_of_shards_cannot_run_code',
        ),
    ),
    Row('S2', 'archives that write elsewhere', ('tests/checkpoint/test_archive.py::test_hostile_archives',)),
    Row(
        'S3',
        'functions in configurations',
        (
            'tests/checkpoint/test_foreign_config.py::test_all_else_is_refused_by_its_place',
            'tests/checkpoint/test_foreign_limits.py::test_a_run_names_classes_of_the_right_kind_and_no_functions',
        ),
    ),
    Row(
        'S4', 'commands in manifests', ('tests/data/test_sources.py::test_a_command_or_an_address_is_refused_by_name',)
    ),
    Row('S5', 'pickled features', ('tests/data/test_sources.py::test_a_cut_without_a_recording_is_refused', _CORPUS)),
    Row(
        'S6',
        'addresses and paths elsewhere',
        ('tests/data/test_conversation.py::test_commands_and_addresses_are_refused',),
    ),
    Row(
        'S7',
        'headers that lie, bombs',
        (
            'tests/checkpoint/test_archive.py::test_a_bomb_stops_early',
            'tests/data/test_limits.py::test_a_small_file_that_decodes_to_gigabytes_is_refused_by_its_header',
            'tests/checkpoint/test_foreign_limits.py::test_sizes_without_end_are_refused_by_their_place',
        ),
    ),
    Row(
        'S8',
        'files that ask for trust in their own code',
        (f'{_NEMO}test_a_stranger_cannot_ask_for_trust_but_the_user_can',),
    ),
    Row(
        'S9',
        'special tokens in anybody\'s text',
        ('tests/data/test_template.py::test_special_tokens_in_anybodys_text_are_ordinary_text',),
    ),
    Row(
        'S10',
        'no call in the tree that runs what it reads; dependencies pinned',
        (
            'tests/test_packaging.py::test_house_rules',
            'tests/test_packaging.py::test_pins_are_exact_complete_and_inside_the_bounds',
            'tests/commands/test_doctor.py::test_wrong_missing_and_malicious_packages',
        ),
        'the pins have no hashes',
    ),
    Row('soak', 'one long training under all of it'),
)
