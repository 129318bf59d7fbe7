#include <stdio.h>

#include "trainer/commands/commands.h"
#include "trainer/commands/options.h"
#include "trainer/config/config.h"

enum status command_config(int argc, char **argv)
{
    struct option_result options;
    struct config config = {0};
    bool keys = false, markdown = false;
    const struct option_spec specs[] = {
        {"--help-keys", OPTION_FLAG, &keys, NULL,
         "list every key with type, range, default, meaning"},
        {"--markdown", OPTION_FLAG, &markdown, NULL, "the same as docs/config.md"},
        {0}};
    TRY(options_parse(&options, argc, argv, specs,
                      "config CONFIG [key=value ...] | config --help-keys",
                      "Prints a config with every value resolved, ready to be used again.", 0, 1));
    if (options.help) {
        return STATUS_OK;
    }
    if (keys || markdown) {
        (markdown ? config_markdown : config_help)(stdout);
        return STATUS_OK;
    }
    if (options.word_count == 0) {
        return status_fail(
            STATUS_USAGE,
            "config: name a config file (usage: switchyard config CONFIG [key=value ...])");
    }
    config_init(&config);
    const enum status status =
        config_load(&config, options.words[0], options.overrides, options.override_count);
    if (status == STATUS_OK) {
        config_print(&config, stdout);
    }
    config_free(&config);
    return status;
}
