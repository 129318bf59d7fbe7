/* mail: messages of device memory from one rank to another, begun now and finished later.
 *
 * Over the host's transport (comm_send_start): memory that the host sees as it is, a GPU's through
 * a pinned host buffer of the message's own, beside whatever wire carries the rest.
 */
#ifndef PARALLEL_MAIL_H
#define PARALLEL_MAIL_H

#include "parallel/comm.h"

/* One message, coming or going. */
struct mail {
    struct comm *comm; /* borrowed */
    size_t room;       /* bytes of the largest message */
    void *host;        /* [room] pinned, owned; NULL where the host sees the device's memory */
    bool under_way;    /* between mail_send_start and mail_send_finish */
    struct comm_request request;
};

/* Local. Errors: STATUS_RESOURCE. */
enum status mail_init(struct mail *mail, struct comm *comm, size_t room)
    __attribute__((warn_unused_result));
void mail_free(struct mail *mail); /* accepts a zeroed one; nothing may be under way */

/* As comm_send_start, comm_send_finish (which does nothing where nothing is under way) and
 * comm_receive. On a device with a stream, what was enqueued before is waited for. */
void mail_send_start(struct mail *mail, const void *data, size_t bytes, int peer);
void mail_send_finish(struct mail *mail);
void mail_receive(struct mail *mail, void *data, size_t bytes, int peer);

#endif
