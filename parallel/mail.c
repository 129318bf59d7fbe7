#include "parallel/mail.h"

#include <assert.h>

#include "kernels/device.h"

enum status mail_init(struct mail *mail, struct comm *comm, size_t room)
{
    *mail = (struct mail){.comm = comm, .room = room};
    if (comm->device != NULL && device_stream(comm->device) != NULL) {
        mail->host = device_ops(comm->device)->host_alloc(comm->device, room);
        if (mail->host == NULL) {
            return status_fail(STATUS_RESOURCE, "out of memory for messages of %zu bytes", room);
        }
    }
    return STATUS_OK;
}

void mail_free(struct mail *mail)
{
    assert(!mail->under_way);
    if (mail->host != NULL) {
        struct device *device = mail->comm->device;
        device_ops(device)->host_free(device, mail->host, mail->room);
    }
    *mail = (struct mail){0};
}

void mail_send_start(struct mail *mail, const void *data, size_t bytes, int peer)
{
    assert(!mail->under_way && bytes <= mail->room);
    if (mail->host != NULL) {
        device_ops(mail->comm->device)->download(mail->comm->device, mail->host, data, bytes);
    }
    comm_send_start(mail->comm, mail->host != NULL ? mail->host : data, bytes, peer,
                    &mail->request);
    mail->under_way = true;
}

void mail_send_finish(struct mail *mail)
{
    if (mail->under_way) {
        comm_send_finish(mail->comm, &mail->request);
        mail->under_way = false;
    }
}

void mail_receive(struct mail *mail, void *data, size_t bytes, int peer)
{
    assert(!mail->under_way && bytes <= mail->room);
    comm_receive(mail->comm, mail->host != NULL ? mail->host : data, bytes, peer);
    if (mail->host != NULL) {
        device_ops(mail->comm->device)->upload(mail->comm->device, data, mail->host, bytes);
    }
}
