/* A guest agent: of the commands of QEMU's, one a line, those that need no system below it. */
#ifndef AGENT_H
#define AGENT_H

#include <stdbool.h>
#include <stdint.h>

#define AGENT_LINE  256
#define AGENT_REPLY 128

struct agent {
    char line[AGENT_LINE]; /* without blanks */
    uint32_t length;
    bool too_long;
    char reply[AGENT_REPLY];
    uint32_t reply_length;
};

/* Takes one byte, and does what is asked with the one that ends a line; true when there is a reply
   to send. */
bool agent_hear(struct agent *agent, char byte);

#endif
