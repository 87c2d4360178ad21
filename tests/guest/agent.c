#include "agent.h"

#include <stddef.h>

#include "sleep.h"

/* A client begins with it so that half a line of the one before does not spoil its own. */
#define BEGIN_ANEW '\xff'

static void say(struct agent *agent, const char *text)
{
    while (*text != '\0' && agent->reply_length < AGENT_REPLY)
        agent->reply[agent->reply_length++] = *text++;
}

/* What follows `text` in the line; NULL when it is not there. */
static const char *after(const char *line, const char *text)
{
    for (; *line != '\0'; line++) {
        unsigned i = 0;
        while (text[i] != '\0' && line[i] == text[i])
            i++;
        if (text[i] == '\0')
            return line + i;
    }
    return NULL;
}

/* A client may give the members in any order, and arguments to what takes none. */
static bool asked(const struct agent *agent, const char *member)
{
    return agent->line[0] == '{' && after(agent->line, member) != NULL;
}

static bool is_of_number(char c)
{
    return c == '-' || (c >= '0' && c <= '9');
}

static void obey(struct agent *agent)
{
    const char *id = after(agent->line, "\"id\":");
    if (asked(agent, "\"execute\":\"guest-ping\"")) {
        say(agent, "{\"return\": {}}\n");
    } else if (asked(agent, "\"execute\":\"guest-suspend-ram\"")) {
        sleep_in_real_mode();
    } else if (asked(agent, "\"execute\":\"guest-sync\"") && id != NULL && is_of_number(*id)) {
        char number[2] = { 0 };
        say(agent, "{\"return\": ");
        while (is_of_number(number[0] = *id++))
            say(agent, number);
        say(agent, "}\n");
    } else {
        say(agent, "{\"error\": {\"class\": \"CommandNotFound\", "
                   "\"desc\": \"This agent does not know the command\"}}\n");
    }
}

bool agent_hear(struct agent *agent, char byte)
{
    agent->reply_length = 0;
    if (byte == BEGIN_ANEW) {
        agent->length = 0;
        agent->too_long = false;
        return false;
    }
    if (byte == ' ' || byte == '\t' || byte == '\r')
        return false;
    if (byte != '\n') {
        if (agent->length < AGENT_LINE - 1)
            agent->line[agent->length++] = byte;
        else
            agent->too_long = true;
        return false;
    }
    agent->line[agent->length] = '\0';
    if (agent->too_long)
        say(agent, "{\"error\": {\"class\": \"GenericError\", "
                   "\"desc\": \"The line is too long\"}}\n");
    else if (agent->length > 0)
        obey(agent);
    agent->length = 0;
    agent->too_long = false;
    return agent->reply_length > 0;
}
