/* commands: what `switchyard COMMAND` runs. argv[0] is the command's word. A command prints its own
 * results; on failure it returns a status whose message main prints (empty when it was printed
 * already). */
#ifndef TRAINER_COMMANDS_COMMANDS_H
#define TRAINER_COMMANDS_COMMANDS_H

#include "kernels/base/status.h"

enum status command_train(int argc, char **argv);
enum status command_prepare(int argc, char **argv);
enum status command_tokenizer(int argc, char **argv);
enum status command_import(int argc, char **argv);
enum status command_export(int argc, char **argv);
enum status command_eval(int argc, char **argv);
enum status command_generate(int argc, char **argv);
enum status command_bench(int argc, char **argv);
enum status command_plan(int argc, char **argv);
enum status command_ckpt(int argc, char **argv);
enum status command_verify(int argc, char **argv);
enum status command_trace(int argc, char **argv);
enum status command_sweep(int argc, char **argv);
enum status command_init(int argc, char **argv);
enum status command_rerun(int argc, char **argv);
enum status command_watch(int argc, char **argv);
enum status command_report(int argc, char **argv);
enum status command_doctor(int argc, char **argv);
enum status command_config(int argc, char **argv);

#endif
