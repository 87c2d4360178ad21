#include "command_line.h"

#include <stddef.h>

/* The head of hvm_start_info: Xen, docs/misc/pvh.pandoc. */
struct start_info {
    uint32_t magic, version, flags, modules;
    uint64_t modules_address, command_line_address, rsdp_address;
};
#define START_INFO_MAGIC 0x336ec578

#define COMMAND_LINE_SIZE 1024

static char command_line[COMMAND_LINE_SIZE];

void command_line_init(const struct start_info *info)
{
    if (info->magic != START_INFO_MAGIC || info->command_line_address == 0)
        return;
    const char *text = (const char *)info->command_line_address;
    for (unsigned i = 0; i < COMMAND_LINE_SIZE - 1 && text[i] != '\0'; i++)
        command_line[i] = text[i];
}

uint64_t command_line_rsdp(const struct start_info *info)
{
    return info->magic == START_INFO_MAGIC ? info->rsdp_address : 0;
}

/* The text after `name=`, up to a blank or the end. */
static const char *find(const char *name)
{
    const char *word = command_line;
    while (*word != '\0') {
        unsigned i = 0;
        while (name[i] != '\0' && word[i] == name[i])
            i++;
        if (name[i] == '\0' && word[i] == '=')
            return word + i + 1;
        while (*word != '\0' && *word != ' ')
            word++;
        while (*word == ' ')
            word++;
    }
    return NULL;
}

static const char *skip_0x(const char *text)
{
    return text[0] == '0' && (text[1] == 'x' || text[1] == 'X') ? text + 2 : text;
}

static uint64_t number(const char **text, unsigned base)
{
    uint64_t value = 0;
    for (;; ++*text) {
        char c = **text;
        unsigned digit = c >= '0' && c <= '9'   ? (unsigned)(c - '0')
                         : c >= 'a' && c <= 'f' ? (unsigned)(c - 'a' + 10)
                         : c >= 'A' && c <= 'F' ? (unsigned)(c - 'A' + 10)
                                                : base;
        if (digit >= base)
            return value;
        value = value * base + digit;
    }
}

uint64_t parameter(const char *name, uint64_t otherwise)
{
    const char *text = find(name);
    if (text == NULL)
        return otherwise;
    const char *digits = skip_0x(text);
    return number(&digits, digits == text ? 10 : 16);
}

void parameter_region(const char *name, uint64_t *start, uint64_t *length)
{
    const char *text = find(name);
    if (text == NULL)
        return;
    text = skip_0x(text);
    *start = number(&text, 16);
    *length = 0;
    if (*text == ':') {
        text = skip_0x(text + 1);
        *length = number(&text, 16);
    }
    if (*length == 0 || (*text != '\0' && *text != ' '))
        *start = *length = 0;
}

bool parameter_is(const char *name, const char *value)
{
    const char *text = find(name);
    if (text == NULL)
        return false;
    while (*value != '\0' && *text == *value) {
        text++;
        value++;
    }
    return *value == '\0' && (*text == '\0' || *text == ' ');
}
